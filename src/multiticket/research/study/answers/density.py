"""Kind `density`: how sparse may a mask be before it is worse?"""

from __future__ import annotations

from collections.abc import Sequence

from multiticket.research.stats.verdicts import ALPHA
from multiticket.research.study.answers import sides as compared
from multiticket.research.study.answers.formatting import points
from multiticket.research.study.evidence import Evidence, percentage, setting_name
from multiticket.research.study.page_section import Figure, PageSection, Verdict
from multiticket.research.study.questions import Question


def answer_density(question: Question, evidence: Evidence) -> PageSection:
    """Each density of `cell` against `reference`.

    Reproduced where every density from `holds_to` up is not worse by `margin`, and, if `breaks_at` is given, every
    density from it down is worse by more.
    """
    margin = compared.margin_of(question)
    runs = evidence.scored(question.options["cell"])
    density = {percentage(run.config.density): run.config.density for run in runs}
    trained = {(run.setting, percentage(run.config.density)): int(run.result["nnz"]) for run in runs}
    sides = compared.sides_of(question, evidence, runs, lambda run: percentage(run.config.density))
    sides.sort(key=lambda side: -density[side.name])

    def trained_by(side: compared.Side) -> str:
        return f"({trained[side.setting, side.name]:,} numbers)"

    said = []
    for setting, found in compared.by_setting(sides).items():
        fine = [
            f"not worse down to {side.name} {trained_by(side)}" for side in found if side.judged.not_worse
        ]
        worse = [f"worse from {side.name} on {trained_by(side)}" for side in found if side.judged.worse]
        ends = ", ".join([*fine[-1:], *worse[:1]]) or "nothing decided at any density"
        said.append(f"{setting_name(setting)}: {ends}.")
    return compared.answered_by_sides(
        question,
        evidence,
        sides,
        _verdict(sides, density, question),
        " ".join(said) or "No density has a finished run.",
        "Each density minus full training, problem by problem",
        lambda: _figure(sides, density, margin),
        numbers={
            "sides": [
                {"density": density[side.name], "nnz": trained[side.setting, side.name], **numbers}
                for side, numbers in zip(sides, compared.numbers_of(sides), strict=True)
            ]
        },
    )


def _verdict(sides: Sequence[compared.Side], density: dict[str, float], question: Question) -> Verdict:
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


def _figure(sides: Sequence[compared.Side], density: dict[str, float], margin: float) -> Figure:
    said = "; ".join(f"{side.label} {points(side.difference.difference)}" for side in sides)
    return Figure(
        kind="chart",
        caption="Accuracy against full training over the trained fraction; bars are 95 % for all points at once.",
        alternative=f"Difference from full training in percentage points, from dense to sparse: {said}.",
        x_label="density (trained fraction)",
        y_label="difference, percentage points",
        x_log=True,
        series=compared.sides_series(sides, lambda side: density[side.name]),
        marks=compared.margin_marks(margin, "full"),
    )
