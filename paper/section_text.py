"""A section of a report as text: what a program prints of it."""

from __future__ import annotations

from multiticket.research.report.tables import markdown_table
from multiticket.research.study.page_section import Entry, PageSection, Table


def section_text(section: PageSection) -> str:
    """Markdown: claim, verdict, answer, all tables and notes; figures are left to the report."""
    verdict = f"**{section.verdict}.** " if section.verdict else ""
    parts = [f"## {section.heading}", f"{verdict}{section.answer}", f"n: {section.n}" if section.n else ""]
    parts += [f"{table.caption}\n\n{table_text(table)}" for table in section.tables]
    parts += [
        "\n".join(f"- {note}" for note in section.notes),
        f"`{section.command}`" * bool(section.command),
    ]
    return "\n\n".join(part for part in parts if part)


def table_text(table: Table) -> str:
    """A Markdown table."""
    return markdown_table([_cell(name) for name in table.columns], [[*map(_cell, row)] for row in table.rows])


def _cell(entry: Entry) -> str:
    return "" if entry is None else f"{entry:.4g}" if isinstance(entry, float) else str(entry)
