"""Kind `controls`: ways of training of one budget against a reference, each expected to be worse or not."""

from __future__ import annotations

from collections.abc import Sequence

from multiticket.research.stats.verdicts import ALPHA, MARGIN
from multiticket.research.study.answers.parts import (
    Side,
    counts,
    edge_notes,
    numbers_of,
    points,
    sides_figure,
    sides_of,
    sides_table,
    span,
    unfinished,
)
from multiticket.research.study.evidence import Evidence
from multiticket.research.study.page_section import Section, Verdict
from multiticket.research.study.questions import Question


def answer_controls(question: Question, evidence: Evidence) -> Section:
    """The cells that `expect` names against `reference`; reproduced where each comes out as it says.

    ``worse`` is met where the difference is below nought with all judged at once, ``not worse`` where it is above
    minus `margin`, ``same`` where it is below plus `margin` too; ``any`` is shown and decides nothing.
    """
    expect = question.options["expect"]
    margin = question.options.get("margin", MARGIN)
    runs = [(label, run) for label in expect for run in evidence.scored(label)]
    label_of = {run.run.name: label for label, run in runs}
    sides = sides_of(question, evidence, [run for _, run in runs], lambda run: label_of[run.run.name])
    missing = unfinished(question, evidence)
    said = [
        f"{side.label} {points(side.judged.difference.difference)} points ({span(side.judged.simultaneous)}): "
        f"{in_words(side)}"
        for side in sides
    ]
    reference = question.options["reference"]
    return Section(
        name=question.name,
        heading=question.claim,
        verdict=verdict_of_expected(sides, expect) if not missing else "not decided",
        answer="; ".join(said) + "." if said else "No pair of runs is finished.",
        n=counts(sides),
        command=evidence.command,
        notes=[*missing, *edge_notes(question, evidence)],
        figures=[sides_figure(sides, margin, f"Each minus {reference}; bars are 95 % for all rows at once.")]
        if sides
        else [],
        tables=[sides_table(sides, f"Each minus {reference}, problem by problem")] if sides else [],
        numbers={"margin": margin, "expect": dict(expect), "sides": numbers_of(sides)},
    )


def verdict_of_expected(sides: Sequence[Side], expect: dict[str, str]) -> Verdict:
    """Whether every side came out as expected; one that came out the other way decides against it."""
    decided = True
    for side in sides:
        wanted, judged = expect[side.name], side.judged
        below = judged.simultaneous[1] < 0
        against = {
            "worse": judged.not_worse and not below,
            "not worse": judged.worse,
            "same": judged.worse or judged.better,
            "any": False,
        }
        met = {"worse": below, "not worse": judged.p_worse <= ALPHA, "same": judged.same, "any": True}
        if against[wanted]:
            return "not reproduced"
        decided = decided and met[wanted]
    return "reproduced" if decided and sides else "not decided"


def in_words(side: Side) -> str:
    """What all judged at once say of one."""
    low, high = side.judged.simultaneous
    if side.judged.worse:
        return "worse by more than the margin"
    if high < 0:
        return "worse, within the margin" if side.judged.not_worse else "worse"
    if side.judged.not_worse:
        return "better" if low > 0 else "not worse"
    return "not decided"
