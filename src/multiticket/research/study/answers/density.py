"""Kind `density`: how sparse may a mask be before it is worse?"""

from __future__ import annotations

from collections.abc import Sequence

from multiticket.research.stats.verdicts import ALPHA, MARGIN
from multiticket.research.study.answers.parts import (
    Side,
    by_setting,
    counts,
    edge_notes,
    numbers_of,
    points,
    sides_of,
    sides_table,
    unfinished,
)
from multiticket.research.study.evidence import Evidence, percentage, setting_name
from multiticket.research.study.page_section import Figure, Mark, Section, Series, Verdict
from multiticket.research.study.questions import Question


def answer_density(question: Question, evidence: Evidence) -> Section:
    """Each density of `cell` against `reference`.

    Reproduced where every density from `holds_to` up is not worse by `margin`, and, if `breaks_at` is given, every
    density from it down is worse by more.
    """
    margin = question.options.get("margin", MARGIN)
    runs = evidence.scored(question.options["cell"])
    density = {percentage(run.config.density): run.config.density for run in runs}
    trained = {(run.setting, percentage(run.config.density)): int(run.result["nnz"]) for run in runs}
    sides = sides_of(question, evidence, runs, lambda run: percentage(run.config.density))
    sides.sort(key=lambda side: -density[side.name])
    missing = unfinished(question, evidence)
    said = []
    for setting, found in by_setting(sides).items():
        fine = [side for side in found if side.judged.not_worse]
        worse = [side for side in found if side.judged.worse]
        sparsest = (
            f"not worse down to {fine[-1].name} ({trained[setting, fine[-1].name]:,} numbers)" if fine else ""
        )
        densest = (
            f"worse from {worse[0].name} on ({trained[setting, worse[0].name]:,} numbers)" if worse else ""
        )
        ends = ", ".join(part for part in (sparsest, densest) if part) or "nothing decided at any density"
        said.append(f"{setting_name(setting)}: {ends}.")
    return Section(
        name=question.name,
        heading=question.claim,
        verdict=_verdict(sides, density, question) if not missing else "not decided",
        answer=" ".join(said) or "No density has a finished run.",
        n=counts(sides),
        command=evidence.command,
        notes=[*missing, *edge_notes(question, evidence)],
        figures=[_figure(sides, density, margin)] if sides else [],
        tables=[sides_table(sides, "Each density minus full training, problem by problem")] if sides else [],
        numbers={
            "margin": margin,
            "sides": [
                {"density": density[side.name], "nnz": trained[side.setting, side.name], **numbers}
                for side, numbers in zip(sides, numbers_of(sides), strict=True)
            ],
        },
    )


def _verdict(sides: Sequence[Side], density: dict[str, float], question: Question) -> Verdict:
    holds_to, breaks_at = question.options.get("holds_to", 0.0), question.options.get("breaks_at", 0.0)
    upper = [side.judged for side in sides if density[side.name] >= holds_to]
    lower = [side.judged for side in sides if density[side.name] <= breaks_at]
    if not upper or (breaks_at and not lower):
        return "not decided"
    if any(one.worse for one in upper) or any(one.not_worse for one in lower):
        return "not reproduced"
    holds = all(one.p_worse <= ALPHA for one in upper)
    breaks = all(one.difference.worse_by(one.margin) for one in lower)
    return "reproduced" if holds and breaks else "not decided"


def _figure(sides: Sequence[Side], density: dict[str, float], margin: float) -> Figure:
    series = []
    for setting, found in by_setting(sides).items():
        series.append(
            Series(
                name=setting_name(setting),
                x=[density[side.name] for side in found],
                y=[100 * side.judged.difference.difference for side in found],
                low=[100 * side.judged.simultaneous[0] for side in found],
                high=[100 * side.judged.simultaneous[1] for side in found],
            )
        )
    said = "; ".join(f"{side.label} {points(side.judged.difference.difference)}" for side in sides)
    return Figure(
        kind="chart",
        caption="Accuracy against full training over the trained fraction; bars are 95 % for all points at once.",
        alternative=f"Difference from full training in percentage points, from dense to sparse: {said}.",
        x_label="density (trained fraction)",
        y_label="difference, percentage points",
        x_log=True,
        series=series,
        marks=[Mark(at=0, label="full"), Mark(at=-100 * margin, label=f"margin −{100 * margin:g}")],
    )
