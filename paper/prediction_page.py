"""Whether what a mask keeps before training ranks masks as training does, as a section of a study's report.

Runs of one way of choosing positions are alike, so the unit is the way: means over its runs. The verdict is of one
predictor, chosen for a reason: alignment, since it leaves out the scale, which the rate that each run finds for itself
takes care of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from multiticket.evaluate.estimators import Z95
from multiticket.research.stats.rank_correlation import RankCorrelation, correlations
from multiticket.research.stats.verdicts import ALPHA
from multiticket.research.study.page_section import Entry, Figure, Mark, PageSection, Series, Table, Verdict

CHOSEN = "alignment"
SIGNS = {
    "energy": 1,
    "mean_energy": 1,
    "frobenius": -1,
    "operator": -1,
    "alignment": 1,
    "overlap": 1,
    "predicted_frobenius": -1,
}
"""Of each predictor: whether more of it should go with more accuracy."""
WEAK = 0.5
"""A correlation whose whole interval is below it does not rank masks as training does."""
FEWEST = 4


def prediction_section(
    found: Mapping[str, Any], missing: Sequence[str], complete: bool, parameters: str, command: str
) -> PageSection:
    """The section.

    Args:
        found: of `prediction.prediction`, each of its runs with the label of its cell as ``way``.
        missing: labels without a finished run.
        complete: whether all runs of all cells are finished; nothing is decided before.
    """
    ways = by_way(found["runs"])
    over_ways = correlated(ways)
    over_runs = {one["predictor"]: one for one in found["correlations"]}
    chosen = over_ways.get(CHOSEN)
    notes = [
        parameters,
        f"The verdict is of {CHOSEN}, and over ways of choosing positions (means over their runs): reproduced where "
        f"its rank correlation has the right sign with p of at most {ALPHA:g}, not reproduced where its whole interval "
        f"is below {WEAK:g}. The other predictors are shown with p for the best of all.",
        "Intervals of rank correlations after Bonett and Wright (2000); p by permutation, two-sided.",
        "Measured on the base, before training: docs/theory.md says what each predictor is.",
    ]
    if missing:
        notes.append(f"No finished run yet: {', '.join(missing)}.")
    if not complete:
        notes.append("Not all runs are finished; the verdict waits for them.")
    return PageSection(
        name="prediction",
        heading="What a mask keeps of the gradient before training ranks masks as training does.",
        verdict=verdict_of(chosen, len(ways)) if complete else "not decided",
        answer=_answer(chosen, over_ways, len(ways)),
        n=f"{len(ways)} ways of choosing positions, {len(found['runs'])} runs; gradients of {found['samples']} "
        "completions",
        command=command,
        notes=notes,
        figures=[_figure(ways, CHOSEN), _all(over_ways, len(ways))] if over_ways else [],
        tables=[_correlations(over_ways, over_runs, len(ways), len(found["runs"])), _ways(ways)],
        numbers={
            "ways": ways,
            "over_ways": [asdict(one) for one in over_ways.values()],
            "over_runs": list(over_runs.values()),
            "runs": [{key: value for key, value in row.items() if key != "run"} for row in found["runs"]],
        },
    )


def by_way(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the runs of each way, in the order in which they come."""
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault(row["way"], []).append(row)
    return [
        {
            "way": way,
            "runs": len(cell),
            **{name: sum(row[name] for row in cell) / len(cell) for name in (*SIGNS, "after")},
            "lowest": min(row["after"] for row in cell),
            "highest": max(row["after"] for row in cell),
        }
        for way, cell in cells.items()
    ]


def correlated(ways: Sequence[Mapping[str, Any]]) -> dict[str, RankCorrelation]:
    """Every predictor's rank correlation with accuracy, over ways; none where there are fewer than four."""
    after = [way["after"] for way in ways]
    if len(ways) < FEWEST or len(set(after)) == 1:
        return {}
    return {one.predictor: one for one in correlations({n: [way[n] for way in ways] for n in SIGNS}, after)}


def interval_of(correlation: float, count: int) -> tuple[float, float]:
    """95 % of a Spearman correlation of `count` pairs: z +- 1.96 sqrt((1 + r^2 / 2) / (n - 3)) (Bonett and Wright)."""
    if count < 4:
        return -1.0, 1.0
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, correlation)))
    half = Z95 * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    return math.tanh(middle - half), math.tanh(middle + half)


def verdict_of(chosen: RankCorrelation | None, count: int) -> Verdict:
    """Of the chosen predictor over `count` ways."""
    if chosen is None:
        return "not decided"
    signed = SIGNS[chosen.predictor] * chosen.spearman
    low, high = interval_of(signed, count)
    if low > 0 and chosen.spearman_p <= ALPHA:
        return "reproduced"
    return "not reproduced" if high < WEAK else "not decided"


def _answer(chosen: RankCorrelation | None, found: Mapping[str, RankCorrelation], count: int) -> str:
    if not found:
        return (
            f"{count} ways of choosing positions have finished runs, and a rank correlation needs {FEWEST}."
        )
    said = []
    if chosen is not None:
        said.append(f"{CHOSEN}: rank correlation with accuracy {_with_interval(chosen, count)}")
    best = max(found.values(), key=lambda one: abs(one.spearman))
    said.append(
        f"strongest of {len(found)} predictors: {best.predictor} {_with_interval(best, count, family=True)}"
    )
    return f"{'; '.join(said)}."


def _with_interval(one: RankCorrelation, count: int, family: bool = False) -> str:
    low, high = interval_of(one.spearman, count)
    p = f"p {one.family_p:.3f} as the best of all" if family else f"p {one.spearman_p:.3f}"
    return f"{one.spearman:+.2f} (95 % {low:+.2f} to {high:+.2f}, {p})"


def _correlations(
    over_ways: Mapping[str, RankCorrelation], over_runs: Mapping[str, Mapping[str, Any]], ways: int, runs: int
) -> Table:
    spans = {name: interval_of(one.spearman, ways) for name, one in over_ways.items()}
    return Table.of(
        f"Rank correlation of each predictor with accuracy after training, over {ways} ways; last, over {runs} runs, "
        "which are not independent",
        [over_ways[name] for name in SIGNS if name in over_ways],
        {
            "predictor": lambda one: one.predictor,
            "should be": lambda one: "more" if SIGNS[one.predictor] > 0 else "less",
            "Spearman": lambda one: round(one.spearman, 2),
            "95 %": lambda one: "{:+.2f} to {:+.2f}".format(*spans[one.predictor]),
            "p": lambda one: round(one.spearman_p, 4),
            "p, best of all": lambda one: round(one.family_p, 4),
            "Kendall": lambda one: round(one.kendall, 2),
            "Spearman over runs": lambda one: (
                round(over_runs[one.predictor]["spearman"], 2) if one.predictor in over_runs else None
            ),
        },
    )


def _ways(ways: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[Entry]] = []
    for way in sorted(ways, key=lambda way: -way["after"]):
        spread = f"{100 * way['lowest']:.1f} to {100 * way['highest']:.1f}"
        numbers = [float(f"{way[name]:.3g}") for name in SIGNS]
        rows.append([way["way"], way["runs"], round(100 * way["after"], 1), spread, *numbers])
    caption = "Each way of choosing positions: accuracy after training, its range over runs, and what was known before"
    return Table(caption=caption, columns=["way", "runs", "pass@1, %", "runs", *SIGNS], rows=rows)


def _figure(ways: Sequence[Mapping[str, Any]], predictor: str) -> Figure:
    """Ways from most to least of the predictor: their accuracies fall where it ranks them."""
    ordered = sorted(ways, key=lambda way: -way[predictor])
    names = [f"{way['way']}, {way[predictor]:.2f}" for way in ordered]
    said = "; ".join(f"{name}: {100 * way['after']:.1f} %" for name, way in zip(names, ordered, strict=True))
    return Figure(
        kind="intervals",
        caption=f"Accuracy after training, ways in order of {predictor} before it (beside their names); bars from the "
        "lowest to the highest run.",
        alternative=f"By falling {predictor}: {said}.",
        x_label="pass@1 after training, %",
        series=[
            Series.with_ends(
                "runs",
                names,
                [way["after"] for way in ordered],
                [(way["lowest"], way["highest"]) for way in ordered],
                scale=100,
            )
        ],
    )


def _all(found: Mapping[str, RankCorrelation], count: int) -> Figure:
    spans = [interval_of(one.spearman, count) for one in found.values()]
    said = "; ".join(f"{name} {_with_interval(one, count)}" for name, one in found.items())
    return Figure(
        kind="intervals",
        caption="Rank correlation of every predictor with accuracy over ways, with 95 % intervals.",
        alternative=f"Correlations: {said}.",
        x_label="Spearman's rank correlation",
        series=[Series.with_ends("over ways", list(found), [one.spearman for one in found.values()], spans)],
        marks=[Mark(at=0, label="none")],
    )
