"""Kinds `record` and `none`: what another command measured, and what cannot be tested here."""

from __future__ import annotations

from pathlib import Path

from multiticket.research.study.evidence import Evidence
from multiticket.research.study.page_section import PageSection, read_section
from multiticket.research.study.questions import Question


def answer_record(question: Question, evidence: Evidence) -> PageSection:
    """The section that another command wrote to the file `record`, under the study's name and claim.

    Raises:
        ValueError: the file is there and does not hold a section.
    """
    path, command = Path(question.options["record"]), str(question.options.get("command", ""))
    if not path.exists():
        return PageSection(
            name=question.name,
            heading=question.claim,
            verdict="not decided",
            answer=f"Not measured yet: another command writes {path.name}, which is shown here.",
            command=command,
        )
    found = read_section(path)
    return found.model_copy(
        update={"name": question.name, "heading": question.claim, "command": found.command or command}
    )


def answer_none(question: Question, evidence: Evidence) -> PageSection:
    """A claim that is listed, and why it is not tested."""
    return PageSection(
        name=question.name,
        heading=question.claim,
        verdict="not testable here",
        answer=str(question.options["why"]),
    )
