"""Sections as one HTML page that needs nothing else: no network, no fonts, no script to be readable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from multiticket.research.study.page_section import VERDICTS, Entry, PageSection, Table

PACKAGE = "multiticket.research.report"


def page(
    sections: Sequence[PageSection],
    pictures: Mapping[str, Sequence[tuple[str, str]]],
    title: str,
    command: str,
    version: str,
) -> str:
    """The whole page.

    Args:
        pictures: for each section's name, of each of its figures the SVG element and its files' path without ending.
        command: what makes the page again.
    """
    environment = Environment(
        loader=PackageLoader(PACKAGE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_with_its_percent_sign,
        keep_trailing_newline=True,
    )
    environment.filters |= {"shown": shown, "numeric": numeric_columns}
    found = [section.verdict for section in sections]
    style, script = (Markup((files(PACKAGE) / name).read_text("utf-8")) for name in ("page.css", "page.js"))
    return environment.get_template("page.html.jinja").render(
        sections=sections,
        pictures=pictures,
        present={verdict: found.count(verdict) for verdict in VERDICTS if verdict in found},
        title=title,
        command=command,
        version=version,
        style=style,
        script=script,
    )


def shown(entry: Entry) -> str:
    """A table's entry as text: numbers with separators or six digits, and a real minus sign."""
    if isinstance(entry, (int, float)):
        return (f"{entry:,}" if isinstance(entry, int) else f"{entry:g}").replace("-", "−")
    return entry or ""


def numeric_columns(table: Table) -> list[bool]:
    """Whether each column of a table has a number."""
    return [
        any(isinstance(row[column], (int, float)) for row in table.rows)
        for column in range(len(table.columns))
    ]


def _with_its_percent_sign(value: Any) -> Any:
    """Text whose percent signs stay in a line with their numbers."""
    plain = isinstance(value, str) and not isinstance(value, Markup)
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if plain else value
