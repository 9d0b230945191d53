"""Sections as one HTML page that needs nothing else: no network, no fonts, no script to be readable."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files

from multiticket.research.study.page_section import VERDICTS, Entry, PageSection, Table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
NO_VERDICT = "no claim"
SHORT = 12
"""Rows; a longer table is folded."""


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
    package = files("multiticket.research.report")
    style, script = ((package / f"page.{ending}").read_text(encoding="utf-8") for ending in ("css", "js"))
    counted = Counter(section.verdict for section in sections if section.verdict)
    summary = ", ".join(f"{counted[verdict]} {verdict}" for verdict in VERDICTS if counted[verdict])
    lead = f"{len(sections)} claims: {summary}." if summary else ""
    body = "\n".join(_section(section, pictures.get(section.name, ())) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the claims</a>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
{_controls(sections)}
</header>
<main id="main" tabindex="-1">
{_overview(sections)}
{body}
</main>
<footer>
<p>Made by multiticket {escape(version)} with</p>
<pre tabindex="0"><code>{escape(command)}</code></pre>
<p>Everything shown is in <a href="report.json">report.json</a>, every run's settings and result in
<code>runs.parquet</code>. <code>multiticket study report FOLDER</code>, with the folder of this page, draws it again
from them, and each figure as SVG, PDF and PNG.</p>
</footer>
<script>
{script}</script>
</body>
</html>
"""


def escape(text: str) -> str:
    """Text as HTML, its percent signs kept with their numbers."""
    return html.escape(text).replace(" %", "\N{NO-BREAK SPACE}%")


def _controls(sections: Sequence[PageSection]) -> str:
    present = [verdict for verdict in VERDICTS if any(section.verdict == verdict for section in sections)]
    options = "".join(f'<option value="{_slug(verdict)}">{verdict}</option>' for verdict in present)
    return (
        '<div class="controls" hidden>'
        f'<label>Claims <select id="verdict"><option value="">all</option>{options}</select></label>'
        '<label>Theme <select id="theme"><option value="auto">as the system</option>'
        '<option value="light">light</option><option value="dark">dark</option></select></label>'
        f'<span id="shown" role="status">{len(sections)} of {len(sections)} shown</span></div>'
    )


def _overview(sections: Sequence[PageSection]) -> str:
    rows = "\n".join(
        f'<tr data-verdict="{_slug(section.verdict)}"><th scope="row">'
        f'<a href="#{section.name}">{escape(section.heading)}</a></th><td>{_badge(section.verdict)}</td></tr>'
        for section in sections
    )
    return (
        '<nav aria-label="Claims and verdicts"><table>'
        "<caption>The claims at a glance</caption>"
        '<thead><tr><th scope="col">claim</th><th scope="col">verdict</th></tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></nav>"
    )


def _section(section: PageSection, pictures: Sequence[tuple[str, str]]) -> str:
    parts = [f'<h2 id="{section.name}-heading">{escape(section.heading)}</h2>']
    if section.verdict:
        parts.append(f'<p class="verdict">{_badge(section.verdict)}</p>')
    parts.append(f"<p>{escape(section.answer)}</p>")
    if section.n:
        parts.append(f'<p class="n">n: {escape(section.n)}</p>')
    parts += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
    for number, (figure, (svg, path)) in enumerate(zip(section.figures, pictures, strict=True), start=1):
        parts.append(
            f'<figure id="{section.name}-figure-{number}">{svg}'
            f"<figcaption>{escape(figure.caption)} <code>{path}</code></figcaption></figure>"
        )
    parts += [
        _table(table, f"{section.name}-table-{number}")
        for number, table in enumerate(section.tables, start=1)
    ]
    if section.command:
        parts.append(
            f'<p class="n">Made by</p><pre tabindex="0"><code>{escape(section.command)}</code></pre>'
        )
    body = "\n".join(parts)
    return (
        f'<section id="{section.name}" aria-labelledby="{section.name}-heading" '
        f'data-verdict="{_slug(section.verdict)}">\n{body}\n</section>'
    )


def _table(table: Table, name: str) -> str:
    right = [
        any(isinstance(row[column], (int, float)) for row in table.rows)
        for column in range(len(table.columns))
    ]
    head = "".join(
        f'<th scope="col"{_align(number)}>{escape(column)}</th>'
        for column, number in zip(table.columns, right, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(
            _cell(entry, table.columns[column], column == 0, right[column])
            for column, entry in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    caption = escape(table.caption)
    inner = f"<thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"
    if table.folded or len(table.rows) > SHORT:
        return (
            f'<details><summary>{caption} ({len(table.rows)})</summary><div class="scroll" role="region" '
            f'aria-label="{caption}" tabindex="0"><table id="{name}" aria-label="{caption}">{inner}</details>'
        )
    return (
        f'<div class="scroll" role="region" aria-labelledby="{name}-caption" tabindex="0"><table id="{name}">'
        f'<caption id="{name}-caption"><span>{caption}</span></caption>{inner}'
    )


def _cell(entry: Entry, column: str, first: bool, right: bool) -> str:
    data = f' data-value="{entry!r}"' if isinstance(entry, (int, float)) else ""
    text = (
        ""
        if entry is None
        else f"{entry:,}"
        if isinstance(entry, int)
        else f"{entry:g}"
        if data
        else str(entry)
    )
    shown = escape(text.replace("-", "−") if data else text)
    if column == "command":
        shown = f"<code>{shown}</code>"
    tag = 'th scope="row"' if first else "td"
    return f"<{tag}{_align(right)}{data}>{shown}</{tag.split()[0]}>"


def _align(right: bool) -> str:
    return ' class="number"' if right else ""


def _badge(verdict: str | None) -> str:
    return f'<span class="v v-{_slug(verdict)}">{verdict}</span>' if verdict else ""


def _slug(verdict: str | None) -> str:
    return (verdict or NO_VERDICT).replace(" ", "-")
