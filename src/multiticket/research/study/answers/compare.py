"""Kind `compare`: is one way of training no worse than another, in every task and base that the study has?"""

from __future__ import annotations

from multiticket.research.stats.verdicts import MARGIN
from multiticket.research.study.answers.parts import (
    counts,
    differences,
    edge_notes,
    numbers_of,
    sides_figure,
    sides_of,
    sides_table,
    unfinished,
    verdict_of_all,
)
from multiticket.research.study.evidence import Evidence, way
from multiticket.research.study.page_section import Section
from multiticket.research.study.questions import Question


def answer_compare(question: Question, evidence: Evidence) -> Section:
    """`cell` against `reference`; reproduced where `cell` is not worse by `margin` in any task and base."""
    margin = question.options.get("margin", MARGIN)
    sides = sides_of(question, evidence, evidence.scored(question.options["cell"]), way)
    missing = unfinished(question, evidence)
    found = differences(sides)
    caption = f"{question.options['cell']} minus {question.options['reference']}"
    return Section(
        name=question.name,
        heading=question.claim,
        verdict=verdict_of_all(sides, not missing),
        answer=f"{found}. The margin is {100 * margin:g} points."
        if sides
        else "No pair of runs is finished.",
        n=counts(sides),
        command=evidence.command,
        notes=[*missing, *edge_notes(question, evidence)],
        figures=[sides_figure(sides, margin, f"{caption}; bars are 95 % for all rows at once.")]
        if sides
        else [],
        tables=[sides_table(sides, f"{caption}, problem by problem")] if sides else [],
        numbers={"margin": margin, "sides": numbers_of(sides)},
    )
