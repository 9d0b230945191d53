"""Kinds `law` and `collapse`: how the rate goes with the density."""

from __future__ import annotations

from dataclasses import asdict

from multiticket.research.stats.curve_collapse import Run, collapse
from multiticket.research.stats.power_law import PowerLaw, power_law
from multiticket.research.study.answers.parts import edge_notes, rounded, unfinished
from multiticket.research.study.evidence import Evidence, Finished, by, setting_name
from multiticket.research.study.page_section import Entry, Figure, Section, Series, Table, Verdict
from multiticket.research.study.questions import Question

TOLERANCE = 0.2
"""Of an exponent: an interval within it of the claimed one bears the claim out."""


def answer_law(question: Question, evidence: Evidence) -> Section:
    """`y` against density over the runs of `cells`: reproduced where the exponent's interval is near the claimed one.

    `y` is the rate that was found or chosen (runs that share a choice are one point), or ``kl``, what the first step
    moved.
    """
    what = question.options.get("y", "learning_rate")
    missing = unfinished(question, evidence)
    runs = {run.run.name: run for label in _labels(question) for run in evidence.scored(label)}
    laws: dict[tuple[str, str], PowerLaw] = {}
    drawn = []
    for setting, found in by(runs.values(), lambda run: run.setting).items():
        points = _points(found, what)
        x, y = [point[0] for point in points], [point[1] for point in points]
        if len(x) < 3 or len(set(x)) < 2:
            continue
        laws[setting] = law = power_law(x, y)
        drawn.append(Series(name=setting_name(setting), x=x, y=y, joined=False))
        ends = [min(x), max(x)]
        drawn.append(Series(name=f"exponent {law.exponent:.2f}", x=ends, y=[law.at(end) for end in ends]))
    label = "learning rate" if what == "learning_rate" else "KL of the first step, nats a completion"
    claimed = float(question.options["exponent"])
    verdicts = [_verdict(question, law.interval) for law in laws.values()]
    return Section(
        name=question.name,
        heading=question.claim,
        verdict=_of_all(verdicts) if not missing else "not decided",
        answer=" ".join(
            f"{setting_name(setting)}: exponent {law.exponent:.2f} (95 % {law.interval[0]:.2f} to "
            f"{law.interval[1]:.2f}), claimed {claimed:g}."
            for setting, law in laws.items()
        )
        or "Fewer than three points are finished.",
        n=", ".join(f"{law.n} points on {setting_name(setting)}" for setting, law in laws.items())
        or "none yet",
        command=evidence.command,
        notes=[*missing, *edge_notes(question, evidence)],
        figures=[_figure(drawn, label, laws)] if drawn else [],
        tables=[_law_table(laws, label)] if laws else [],
        numbers={"laws": [{"setting": list(setting), **asdict(law)} for setting, law in laws.items()]},
    )


def answer_collapse(question: Question, evidence: Evidence) -> Section:
    """Accuracy against rate x density^exponent: reproduced where the exponent's interval is near the claimed one.

    Of cells with a sweep it takes the sweep's runs, of others the runs themselves.
    """
    measure = question.options.get("measure", "pass@1")
    missing = unfinished(question, evidence)
    cells = [evidence.study.cell(label) for label in _labels(question)]
    runs = {run.run.name: run for cell in cells for run in evidence.finished(cell.sweep or cell.runs)}
    figures, numbers, said, verdicts = [], [], [], []
    rows: list[list[Entry]] = []
    for setting, found in by(runs.values(), lambda run: run.setting).items():
        points = [Run(one.config.density, one.result["learning_rate"], one.score(measure)) for one in found]
        by_density = by(found, lambda run: run.config.density)
        rates = [{run.result["learning_rate"] for run in same} for same in by_density.values()]
        if len(rates) < 2 or min(map(len, rates)) < 2:
            continue
        result = collapse(points)
        verdicts.append(_verdict(question, result.interval))
        interval = (
            f"{result.interval[0]:.2f} to {result.interval[1]:.2f}"
            if result.interval
            else "not told by so few"
        )
        apart = None if result.apart is None else rounded(100 * result.apart)
        said.append(
            f"{setting_name(setting)}: the curves lie on one another at rate × density^{result.exponent:.2f} "
            f"(95 %: {interval}), {100 * result.distance:.1f} points apart"
            + (f", against {apart:.1f} over the rate alone." if apart is not None else ".")
        )
        rows.append([setting_name(setting), result.n, result.exponent, interval])
        rows[-1] += [rounded(100 * result.distance), apart]
        numbers.append(
            {"setting": list(setting), **asdict(result), "points": [asdict(point) for point in points]}
        )
        figures.append(_curves(setting, by_density, result.exponent, measure))
    table = Table(
        caption="Where the curves of all densities come together",
        columns=["task, base", "runs", "exponent", "95 %", "distance, points", "over the rate alone, points"],
        rows=rows,
    )  # fmt: skip
    return Section(
        name=question.name,
        heading=question.claim,
        verdict=_of_all(verdicts) if not missing else "not decided",
        answer=" ".join(said) or "Fewer than two densities with two rates each are finished.",
        n=", ".join(f"{row[1]} runs on {row[0]}" for row in rows) or "none yet",
        command=evidence.command,
        notes=missing,
        figures=figures,
        tables=[table] if rows else [],
        numbers={"collapses": numbers},
    )


def _labels(question: Question) -> list[str]:
    cells = question.options["cells"]
    return [str(label) for label in (cells if isinstance(cells, list) else [cells])]


def _points(runs: list[Finished], what: str) -> list[tuple[float, float]]:
    """(density, y) of each run; a rate that was chosen for several runs is one point."""
    points: dict[str, tuple[float, float]] = {}
    for run in runs:
        y = float(run.result["learning_rate"]) if what == "learning_rate" else run.first_kl()
        chosen = what == "learning_rate" and run.run.choice is not None
        if y:
            key = run.run.choice.name if chosen and run.run.choice else run.run.name
            points.setdefault(key, (run.config.density, y))
    return list(points.values())


def _verdict(question: Question, interval: tuple[float, float] | None) -> Verdict:
    claimed, tolerance = (
        float(question.options["exponent"]),
        float(question.options.get("tolerance", TOLERANCE)),
    )
    if interval is None:
        return "not decided"
    if claimed - tolerance <= interval[0] and interval[1] <= claimed + tolerance:
        return "reproduced"
    if interval[1] < claimed - tolerance or claimed + tolerance < interval[0]:
        return "not reproduced"
    return "not decided"


def _of_all(verdicts: list[Verdict]) -> Verdict:
    if "not reproduced" in verdicts:
        return "not reproduced"
    return "reproduced" if verdicts and set(verdicts) == {"reproduced"} else "not decided"


def _figure(series: list[Series], label: str, laws: dict[tuple[str, str], PowerLaw]) -> Figure:
    said = "; ".join(
        f"{setting_name(setting)} goes as density^{law.exponent:.2f}" for setting, law in laws.items()
    )
    return Figure(
        kind="chart",
        caption=f"{label[0].upper()}{label[1:]} against density; lines are least squares in logarithms.",
        alternative=f"Points and fitted lines in logarithmic axes: {said}.",
        x_label="density (trained fraction)",
        y_label=label,
        x_log=True,
        y_log=True,
        series=series,
    )


def _law_table(laws: dict[tuple[str, str], PowerLaw], label: str) -> Table:
    return Table(
        caption=f"{label} = c × density^exponent",
        columns=["task, base", "points", "exponent", "95 %", "95 % by bootstrap", "c", "R²"],
        rows=[
            [
                setting_name(setting),
                law.n,
                round(law.exponent, 3),
                f"{law.interval[0]:.2f} to {law.interval[1]:.2f}",
                f"{law.bootstrap[0]:.2f} to {law.bootstrap[1]:.2f}",
                float(f"{law.scale:.3g}"),
                round(law.r_squared, 3),
            ]
            for setting, law in laws.items()
        ],
    )


def _curves(
    setting: tuple[str, str], by_density: dict[float, list[Finished]], exponent: float, measure: str
) -> Figure:
    series = []
    for density, runs in sorted(by_density.items(), reverse=True):
        cells = by(runs, lambda run: run.result["learning_rate"])
        places = sorted(cells)
        series.append(
            Series(
                name=f"{100 * density:g} %",
                x=[rate * density**exponent for rate in places],
                y=[
                    100 * sum(run.score(measure) for run in cells[rate]) / len(cells[rate]) for rate in places
                ],
            )
        )
    said = "; ".join(f"{one.name}: best {max(one.y):.1f} %" for one in series)
    return Figure(
        kind="chart",
        caption=f"Accuracy over rate × density^{exponent:.2f} on {setting_name(setting)}, a line for each density.",
        alternative=f"Accuracy over rate times density to the power {exponent:.2f}, in percent. {said}.",
        x_label=f"rate × density^{exponent:.2f}",
        y_label="accuracy, %",
        x_log=True,
        series=series,
    )
