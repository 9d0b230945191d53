"""Kind `elsewhere`: does one way of training forget more of the tasks it is not trained on than another?"""

from __future__ import annotations

from functools import partial

from multiticket.evaluate.problem_results import Results
from multiticket.research.stats.verdicts import MARGIN
from multiticket.research.study.answers.parts import (
    Pair,
    counts,
    differences,
    edge_notes,
    judged_sides,
    numbers_of,
    pairs_of,
    sides_figure,
    sides_of,
    sides_table,
    unfinished,
    verdict_of_all,
)
from multiticket.research.study.evidence import Evidence, Finished, way
from multiticket.research.study.page_section import Section
from multiticket.research.study.questions import Question


def answer_elsewhere(question: Question, evidence: Evidence) -> Section:
    """`cell` against `reference` on the tasks that their cells name under `also`.

    Reproduced where `cell` is not worse by `margin` on any of them; how the two do on the task that they were trained
    on stands beside it, for forgetting is to be compared at equal gain.
    """
    margin = question.options.get("margin", MARGIN)
    runs = evidence.scored(question.options["cell"])
    missing = unfinished(question, evidence, elsewhere=True)
    pairs: list[Pair] = []
    for task in dict.fromkeys(task for run in runs for task in run.run.also):
        there = [run for run in runs if task in run.run.also]
        found = pairs_of(question, evidence, there, way, partial(_results, task))
        pairs += [((f"{own} → {task}", model), name, n, scores) for (own, model), name, n, scores in found]
    sides = judged_sides(pairs, margin)
    trained = sides_of(question, evidence, runs, way)
    said = differences(sides)
    caption = f"{question.options['cell']} minus {question.options['reference']}"
    return Section(
        name=question.name,
        heading=question.claim,
        verdict=verdict_of_all(sides, not missing),
        answer=f"{said}. The margin is {100 * margin:g} points."
        if sides
        else "No pair of runs is measured elsewhere.",
        n=counts(sides),
        command=evidence.command,
        notes=[*missing, *edge_notes(question, evidence)],
        figures=[
            sides_figure(sides, margin, f"{caption} on the other task; bars are 95 % for all rows at once.")
        ]
        if sides
        else [],
        tables=[
            sides_table(sides, f"{caption}: trained on one task, measured on another"),
            sides_table(trained, f"{caption}: measured on the task that was trained"),
        ]
        if sides
        else [],
        numbers={"margin": margin, "sides": numbers_of(sides), "own": numbers_of(trained)},
    )


def _results(task: str, run: Finished) -> Results | None:
    return run.elsewhere(task)
