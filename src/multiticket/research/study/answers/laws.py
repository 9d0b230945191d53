"""Kinds `law` and `collapse`: how the rate goes with the density."""

from __future__ import annotations

from dataclasses import asdict

from multiticket.research.stats.curve_collapse import CurveCollapse, CurvePoint, collapse_curves
from multiticket.research.stats.power_law import PowerLaw, power_law
from multiticket.research.study.answers.formatting import rounded
from multiticket.research.study.answers.sides import answered
from multiticket.research.study.evidence import Evidence, Finished, by, setting_name
from multiticket.research.study.page_section import Figure, PageSection, Series, Table, Verdict
from multiticket.research.study.questions import Question

TOLERANCE = 0.2
"""Of an exponent: an interval within it of the claimed one bears the claim out."""


def answer_law(question: Question, evidence: Evidence) -> PageSection:
    """`y` against density over the runs of `cells`: reproduced where the exponent's interval is near the claimed one.

    `y` is the rate that was found or chosen (runs that share a choice are one point), or ``kl``, what the first step
    moved.
    """
    what = question.options.get("y", "learning_rate")
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
    said = " ".join(
        f"{setting_name(setting)}: exponent {law.exponent:.2f} (95 % {_span(law.interval)}), claimed "
        f"{float(question.options['exponent']):g}."
        for setting, law in laws.items()
    )
    return answered(
        question,
        evidence,
        _of_all([_verdict(question, law.interval) for law in laws.values()]),
        answer=said or "Fewer than three points are finished.",
        n=", ".join(f"{law.n} points on {setting_name(setting)}" for setting, law in laws.items())
        or "none yet",
        figures=[_figure(drawn, label, laws)] if drawn else [],
        tables=[_law_table(laws, label)] if laws else [],
        numbers={"laws": [{"setting": list(setting), **asdict(law)} for setting, law in laws.items()]},
    )


def answer_collapse(question: Question, evidence: Evidence) -> PageSection:
    """Accuracy against rate x density^exponent: reproduced where the exponent's interval is near the claimed one.

    Of cells with a sweep it takes the sweep's runs, of others the runs themselves.
    """
    measure = question.options.get("measure", "pass@1")
    cells = [evidence.study.cell(label) for label in _labels(question)]
    runs = {
        run.run.name: run
        for cell in cells
        for run in evidence.finished(cell.sweep or cell.runs)
        if run.result["learning_rate"] is not None
    }
    collapses: dict[tuple[str, str], CurveCollapse] = {}
    figures, numbers = [], []
    for setting, found in by(runs.values(), lambda run: run.setting).items():
        points = [
            CurvePoint(one.config.density, one.result["learning_rate"], one.score(measure)) for one in found
        ]
        by_density = by(found, lambda run: run.config.density)
        rates = [{run.result["learning_rate"] for run in same} for same in by_density.values()]
        if len(rates) < 2 or min(map(len, rates)) < 2:
            continue
        collapses[setting] = result = collapse_curves(points)
        numbers.append(
            {"setting": list(setting), **asdict(result), "points": [asdict(point) for point in points]}
        )
        figures.append(_curves(setting, by_density, result.exponent, measure))
    table = Table.of(
        "Where the curves of all densities come together",
        collapses.items(),
        {
            "task, base": lambda one: setting_name(one[0]),
            "runs": lambda one: one[1].n,
            "exponent": lambda one: one[1].exponent,
            "95 %": lambda one: _interval(one[1]),
            "distance, points": lambda one: rounded(100 * one[1].distance),
            "over the rate alone, points": lambda one: _apart(one[1]),
        },
    )
    return answered(
        question,
        evidence,
        _of_all([_verdict(question, one.interval) for one in collapses.values()]),
        edges=False,
        answer=" ".join(_in_words(setting, one) for setting, one in collapses.items())
        or "Fewer than two densities with two rates each are finished.",
        n=", ".join(f"{one.n} runs on {setting_name(setting)}" for setting, one in collapses.items())
        or "none yet",
        figures=figures,
        tables=[table] if collapses else [],
        numbers={"collapses": numbers},
    )


def _in_words(setting: tuple[str, str], one: CurveCollapse) -> str:
    apart = _apart(one)
    ending = "." if apart is None else f", against {apart:.1f} over the rate alone."
    return (
        f"{setting_name(setting)}: the curves lie on one another at rate × density^{one.exponent:.2f} "
        f"(95 %: {_interval(one)}), {100 * one.distance:.1f} points apart{ending}"
    )


def _apart(one: CurveCollapse) -> float | None:
    return None if one.apart is None else rounded(100 * one.apart)


def _interval(one: CurveCollapse) -> str:
    return _span(one.interval) if one.interval else "not told by so few"


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def _labels(question: Question) -> list[str]:
    cells = question.options["cells"]
    return [str(label) for label in (cells if isinstance(cells, list) else [cells])]


def _points(runs: list[Finished], what: str) -> list[tuple[float, float]]:
    """(density, y) of each run; a rate that was chosen for several runs is one point."""
    points: dict[str, tuple[float, float]] = {}
    for run in runs:
        y = run.result["learning_rate"] if what == "learning_rate" else run.first_kl()
        chosen = what == "learning_rate" and run.run.choice is not None
        if y:
            key = run.run.choice.name if chosen and run.run.choice else run.run.name
            points.setdefault(key, (run.config.density, y))
    return list(points.values())


def _verdict(question: Question, interval: tuple[float, float] | None) -> Verdict:
    claimed = float(question.options["exponent"])
    tolerance = float(question.options.get("tolerance", TOLERANCE))
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
    return Table.of(
        f"{label} = c × density^exponent",
        laws.items(),
        {
            "task, base": lambda law: setting_name(law[0]),
            "points": lambda law: law[1].n,
            "exponent": lambda law: round(law[1].exponent, 3),
            "95 %": lambda law: _span(law[1].interval),
            "95 % by bootstrap": lambda law: _span(law[1].bootstrap),
            "c": lambda law: float(f"{law[1].scale:.3g}"),
            "R²": lambda law: round(law[1].r_squared, 3),
        },
    )


def _curves(
    setting: tuple[str, str], by_density: dict[float, list[Finished]], exponent: float, measure: str
) -> Figure:
    series = []
    for density, runs in sorted(by_density.items(), reverse=True):
        scores = by(runs, lambda run: run.result["learning_rate"])
        rates = sorted(scores)
        means = [100 * sum(run.score(measure) for run in scores[rate]) / len(scores[rate]) for rate in rates]
        places = [rate * density**exponent for rate in rates]
        series.append(Series(name=f"{100 * density:g} %", x=places, y=means))
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
