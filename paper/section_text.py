"""A section of a report as text: what a program prints of it."""

from __future__ import annotations

from multiticket.research.report.tables import entry_text, markdown_table
from multiticket.research.study.page_section import PageSection, Table


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
    return markdown_table(table.columns, [[*map(entry_text, row)] for row in table.rows])
