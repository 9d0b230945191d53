"""Answers to a study's questions: each kind reads the runs and returns a section of the report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from multiticket.research.study.answers.controls import answer_controls
from multiticket.research.study.answers.density import answer_density
from multiticket.research.study.answers.difference import answer_compare, answer_other_tasks
from multiticket.research.study.answers.formatting import rounded, three_digits
from multiticket.research.study.answers.laws import answer_collapse, answer_law
from multiticket.research.study.answers.mask_overlap import answer_overlap
from multiticket.research.study.answers.masks import answer_masks
from multiticket.research.study.answers.recorded import answer_none, answer_record
from multiticket.research.study.answers.training import answer_training
from multiticket.research.study.evidence import Evidence
from multiticket.research.study.grid import Study
from multiticket.research.study.page_section import PageSection, Table
from multiticket.research.study.questions import REQUIRED, Question

KINDS: dict[str, Callable[[Question, Evidence], PageSection]] = {
    "compare": answer_compare,
    "masks": answer_masks,
    "overlap": answer_overlap,
    "density": answer_density,
    "controls": answer_controls,
    "elsewhere": answer_other_tasks,
    "law": answer_law,
    "collapse": answer_collapse,
    "training": answer_training,
    "record": answer_record,
    "none": answer_none,
}
assert set(KINDS) == set(REQUIRED)


def answers(study: Study, folder: Path, command: str, report: Path | None = None) -> list[PageSection]:
    """A section for each question, in their order; what is not done yet is said to be undecided.

    Args:
        folder: the study's, with a folder for each run.
        command: what does the study's runs, to print beside each answer.
        report: where the report is to lie; default ``report`` in the study's folder.

    Raises:
        ValueError: the study asks nothing, or runs that are compared were not measured on the same problems.
    """
    if not study.questions:
        raise ValueError(f"The study {study.name} asks no questions: add some under questions.")
    evidence = Evidence(study, folder, command, report)
    return [
        with_runs(KINDS[question.kind](question, evidence), question, evidence)
        for question in study.questions
    ]


def with_runs(section: PageSection, question: Question, evidence: Evidence) -> PageSection:
    """The section with a folded table of every run that it looks at, each with the command that does it again."""
    runs = {run.run.name: run for label in question.labels for run in evidence.scored(label)}
    if not runs:
        return section
    table = Table.of(
        "Every run, and the command that does it again",
        runs.values(),
        {
            "run": lambda run: run.run.name,
            "rate": lambda run: three_digits(run.result["learning_rate"]),
            "accuracy %": lambda run: rounded(100 * run.score("pass@1")),
            "greedy %": lambda run: rounded(100 * run.score("greedy")),
            "n": lambda run: run.result["eval"]["after"]["n"],
            "trained numbers": lambda run: run.result["nnz"],
            "command": lambda run: shlex.join(
                ["multiticket", "study", "rerun", str(evidence.report), run.run.name]
            ),
        },
        folded=True,
    )
    return section.model_copy(update={"tables": [*section.tables, table]})
