"""Kinds `compare` and `elsewhere`: is one way of training no worse than another, on its own task or on others?"""

from __future__ import annotations

from functools import partial

from multiticket.evaluate.problem_results import Results
from multiticket.research.study.answers import sides as compared
from multiticket.research.study.evidence import Evidence, Finished, by, way
from multiticket.research.study.page_section import PageSection
from multiticket.research.study.questions import Question

FORGOTTEN = "On the other task beside the base: what was forgotten, or learned by the way"


def answer_compare(question: Question, evidence: Evidence) -> PageSection:
    """`cell` against `reference`; reproduced where `cell` is not worse by `margin` in any task and base."""
    margin = compared.margin_of(question)
    sides = compared.sides_of(question, evidence, evidence.scored(question.options["cell"]), way)
    caption = f"{question.options['cell']} minus {question.options['reference']}"
    found = f"{compared.differences(sides)}. The margin is {100 * margin:g} points."
    return compared.answered_by_sides(
        question,
        evidence,
        sides,
        compared.verdict_of_all(sides),
        found if sides else "No pair of runs is finished.",
        f"{caption}, problem by problem",
        lambda: compared.sides_figure(sides, margin, f"{caption}; bars are 95 % for all rows at once."),
    )


def answer_other_tasks(question: Question, evidence: Evidence) -> PageSection:
    """`cell` against `reference` on the tasks that their cells name under `also`.

    Reproduced where `cell` is not worse by `margin` on any of them. Beside it stands how both do there compared with
    their base, which tells what was forgotten or learned by the way, and how they do on the task that they were
    trained on: forgetting is to be compared at equal gain.
    """
    margin = compared.margin_of(question)
    runs = evidence.scored(question.options["cell"])
    pairs: list[compared.Pair] = []
    for task in dict.fromkeys(task for run in runs for task in run.run.also):
        measured = [run for run in runs if task in run.run.also]
        found = compared.pairs_of(question, evidence, measured, way, partial(_results, task))
        pairs += [(_trained_on(setting, task), name, n, scores) for setting, name, n, scores in found]
    sides = compared.judged_sides(pairs, margin)
    trained = compared.sides_of(question, evidence, runs, way)
    caption = f"{question.options['cell']} minus {question.options['reference']}"
    since = compared.judged_sides(_beside_bases(question, evidence), margin)
    said = f"{compared.differences(sides)}. The margin is {100 * margin:g} points."
    said += f" Beside the base: {compared.differences(since)}." if since else ""
    bars = f"{caption} on the other task; bars are 95 % for all rows at once."
    return compared.answered_by_sides(
        question,
        evidence,
        sides,
        compared.verdict_of_all(sides),
        said if sides else "No pair of runs is evaluated on another task.",
        f"{caption}: trained on one task, evaluated on another",
        lambda: compared.sides_figure(sides, margin, bars),
        [
            *([compared.sides_table(since, FORGOTTEN)] if since else []),
            compared.sides_table(trained, f"{caption}: evaluated on the training task"),
        ],
        {"own": compared.numbers_of(trained), "since": compared.numbers_of(since)},
        other_tasks=True,
    )


def _beside_bases(question: Question, evidence: Evidence) -> list[compared.Pair]:
    """Both ways of training beside their base, which is one run, on each other task; those whose base is measured."""
    labels = (question.options["reference"], question.options["cell"])
    runs = [run for label in dict.fromkeys(labels) for run in evidence.scored(label)]
    pairs: list[compared.Pair] = []
    for task in dict.fromkeys(task for run in runs for task in run.run.also):
        for (setting, side), found in by(runs, lambda run: (run.setting, way(run))).items():
            own = [(one, run) for run in found if (one := run.on_other_task(task))]
            base = own[0][1].base_on_other_task(task) if own else None
            if base is not None:
                after = [one for one, _ in own]
                scores = compared.beside(question, [base], after)
                pairs.append((_trained_on(setting, task), side, len(base.problems), scores))
    return pairs


def _trained_on(setting: compared.Setting, task: str) -> compared.Setting:
    """How a task and base are called whose runs are evaluated on another task."""
    own, model = setting
    return f"{own} → {task}", model


def _results(task: str, run: Finished) -> Results | None:
    return run.on_other_task(task)
