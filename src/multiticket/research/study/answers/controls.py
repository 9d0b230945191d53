"""Kind `controls`: ways of training of one budget against a reference, each expected to be worse or not."""

from __future__ import annotations

from collections.abc import Sequence

from multiticket.research.stats.verdicts import ALPHA
from multiticket.research.study.answers import sides as compared
from multiticket.research.study.answers.formatting import points, span
from multiticket.research.study.evidence import Evidence
from multiticket.research.study.page_section import PageSection, Verdict
from multiticket.research.study.questions import Question


def answer_controls(question: Question, evidence: Evidence) -> PageSection:
    """The cells that `expect` names against `reference`; reproduced where each comes out as it says.

    ``worse`` is met where the difference is below zero with all judged at once, ``not worse`` where it is above
    minus `margin`, ``not better`` where it is below plus `margin`, ``same`` where both; ``any`` is shown and decides
    nothing.
    """
    expect = question.options["expect"]
    margin = compared.margin_of(question)
    label_of = {run.run.name: label for label in expect for run in evidence.scored(label)}
    runs = [run for label in expect for run in evidence.scored(label)]
    sides = compared.sides_of(question, evidence, runs, lambda run: label_of[run.run.name])
    said = "; ".join(
        f"{side.label} {points(side.difference.difference)} points ({span(side.judged.simultaneous)}): "
        f"{in_words(side)}"
        for side in sides
    )
    minus = f"Each minus {question.options['reference']}"
    return compared.answered_by_sides(
        question,
        evidence,
        sides,
        verdict_of_expected(sides, expect),
        f"{said}." if sides else "No pair of runs is finished.",
        f"{minus}, problem by problem",
        lambda: compared.sides_figure(sides, margin, f"{minus}; bars are 95 % for all rows at once."),
        numbers={"expect": dict(expect)},
    )


def verdict_of_expected(sides: Sequence[compared.Side], expect: dict[str, str]) -> Verdict:
    """Whether every side came out as expected; one that came out the other way decides against it."""
    decided = True
    for side in sides:
        wanted, judged = expect[side.name], side.judged
        below = judged.simultaneous[1] < 0
        against = {
            "worse": judged.not_worse and not below,
            "not worse": judged.worse,
            "not better": judged.better,
            "same": judged.worse or judged.better,
            "any": False,
        }
        met = {
            "worse": below,
            "not worse": judged.p_worse <= ALPHA,
            "not better": judged.p_better <= ALPHA,
            "same": judged.same,
            "any": True,
        }
        if against[wanted]:
            return "not reproduced"
        decided = decided and met[wanted]
    return "reproduced" if decided and sides else "not decided"


def in_words(side: compared.Side) -> str:
    """What all judged at once say of one."""
    low, high = side.judged.simultaneous
    if side.judged.worse:
        return "worse by more than the margin"
    if high < 0:
        return "worse, within the margin" if side.judged.not_worse else "worse"
    if side.judged.not_worse:
        return "better" if low > 0 else "not worse"
    return "not decided"
