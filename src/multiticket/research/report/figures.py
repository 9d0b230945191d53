"""Draw a section's figures: one drawing in named colours, as SVG, PDF and PNG files, and as SVG inside a page.

Inside a page the colours become CSS variables, so that one picture serves light and dark, and text stays text.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.figure import FigureBase

from multiticket.research.study.page_section import Figure, Series
from multiticket.ticket.atomic import replacing

INK, MUTED, RULE = "#1f2328", "#5f6873", "#d5d9de"
SERIES = ("#0b5cad", "#b54708", "#1b7a43", "#7b3fb3", "#a3243b", "#0f7480")
MARKERS = "os^Dvp"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    **{c: f"--series-{i}" for i, c in enumerate(SERIES, start=1)},
}
"""What each colour is called in a page's style."""
MANY = 50
"""Points of a line that are not marked one by one."""
WIDTH = 4.6
"""Inches; on a page a figure is as wide as a phone or a column, and its text about as large as the page's."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


def files_of(figure: Figure, name: str) -> dict[str, bytes]:
    """The figure by file ending: ``svg``, ``pdf`` and ``png``, the same bytes for the same figure and name."""
    found = {}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawing = draw(figure)
        for ending, metadata in (("svg", {"Date": None}), ("pdf", {"CreationDate": None}), ("png", {})):
            buffer = io.BytesIO()
            drawing.savefig(buffer, format=ending, dpi=200, metadata=metadata)
            found[ending] = buffer.getvalue()
    return found


def inline_svg(svg: bytes, name: str, alternative: str) -> str:
    """An SVG file's picture as an element of a page: one image to a screen reader, in the page's colours and font."""
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(xlink:href="#|url\(#)([^")]+)', rf"\g<1>{name}-\g<2>", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<g>\s*<path d=\"[^\"]*\" style=\"fill: #ffffff[^\"]*\"/>\s*</g>", "", text)
    text = re.sub(r"font: ([\d.]+px) 'DejaVu Sans'[^;\"]*", r"font-size: \1", text)
    head = re.search(r'viewBox="([^"]+)"', text)
    assert head is not None
    body = text[text.index(">", text.index("<svg")) + 1 :]
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{escape(alternative)}" '
        f'viewBox="{head[1]}">{" ".join(body.split())}'
    )


def write_figures(figures: Sequence[Figure], path: Path) -> None:
    """All figures side by side in one file, whole or not at all; its ending says the format (svg, png, pdf)."""
    metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": path.stem}):
        size = WIDTH * len(figures), max(map(_height, figures)) + 0.3
        drawing = Drawing(figsize=size, layout="constrained", facecolor="white")
        for part, figure in zip(drawing.subfigures(1, len(figures), squeeze=False)[0], figures, strict=True):
            _fill(part, figure)
        with replacing(path) as file:
            drawing.savefig(file, format=path.suffix[1:], dpi=200, metadata=metadata)


def draw(figure: Figure) -> Drawing:
    """A matplotlib figure; to be called with `STYLE`."""
    drawing = Drawing(figsize=(WIDTH, _height(figure)), layout="constrained", facecolor="white")
    _fill(drawing, figure)
    return drawing


def _height(figure: Figure) -> float:
    """Inches."""
    rows = sum(len(series.y) for series in figure.series) if figure.kind == "intervals" else 0
    step = 0.3 if rows <= 16 else 0.2
    return {"intervals": 1.15 + step * rows, "chart": 3.3, "matrix": WIDTH}[figure.kind]


def _fill(drawing: FigureBase, figure: Figure) -> None:
    axes = drawing.add_subplot(facecolor="none")
    {"intervals": _intervals, "chart": _chart, "matrix": _matrix}[figure.kind](axes, figure)
    axes.set(xlabel=textwrap.fill(figure.x_label, 40), ylabel=textwrap.fill(figure.y_label, 36))
    if figure.kind != "matrix" and len(figure.series) > 1:
        drawing.legend(loc="outside upper left", ncols=2, fontsize=9, handletextpad=0.4, columnspacing=1.2)


def _intervals(axes: Axes, figure: Figure) -> None:
    names: list[str] = []
    for number, series in enumerate(figure.series):
        places = [-len(names) - row for row in range(len(series.y))]
        axes.errorbar(
            series.y, places, xerr=_reach(series), label=series.name, linestyle="none", **_look(number)
        )
        names += [str(name) for name in series.x]
    axes.set_yticks([-row for row in range(len(names))], names)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.tick_params(axis="y", length=0, labelsize=10 if len(names) <= 16 else 8)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    for mark in figure.marks:
        axes.axvline(mark.at, color=MUTED, linewidth=1, linestyle="-" if mark.at == 0 else (0, (4, 3)))
        axes.annotate(
            mark.label,
            (mark.at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3 if mark.at >= 0 else -3, 1),
            textcoords="offset points",
            ha="left" if mark.at >= 0 else "right",
            va="bottom",
            fontsize=8.5,
            color=MUTED,
        )


def _chart(axes: Axes, figure: Figure) -> None:
    places = {float(x) for series in figure.series for x in series.x}
    if figure.x_log:
        axes.set_xscale("log")
        if len(places) == 1:  # from which no scale follows
            axes.set_xlim(0.5 * max(places), 2 * max(places))
    if figure.y_log:
        axes.set_yscale("log")
    for number, series in enumerate(figure.series):
        curve = series.joined and len(series.y) > MANY
        look = _look(number)
        axes.errorbar(
            series.x,
            series.y,
            yerr=None if curve else _reach(series),
            label=series.name,
            linestyle="-" if series.joined else "none",
            **look | ({"marker": ""} if curve else {}),
        )
        if curve and series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=look["color"], alpha=0.18, linewidth=0)
    axes.grid(axis="y")
    for mark in figure.marks:
        axes.axhline(mark.at, color=MUTED, linewidth=1, linestyle="-" if mark.at == 0 else (0, (4, 3)))
        axes.annotate(
            mark.label,
            (1, mark.at),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=8.5,
            color=MUTED,
        )


def _matrix(axes: Axes, figure: Figure) -> None:
    """Squares whose areas are the values' shares of the largest: readable in one colour, light or dark."""
    largest = max((abs(v) for row in figure.values for v in row if v is not None), default=1.0) or 1.0
    side = 5200 / max(len(figure.rows), len(figure.columns)) ** 2
    for row, values in enumerate(figure.values):
        for column, value in enumerate(values):
            if value is not None:
                axes.scatter(
                    [column],
                    [row],
                    s=side * abs(value) / largest,
                    marker="s",
                    color=SERIES[value < 0],
                    linewidths=0,
                )
    axes.set_xticks(range(len(figure.columns)), figure.columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(figure.rows)), figure.rows, fontsize=8)
    axes.set_xlim(-0.6, len(figure.columns) - 0.4)
    axes.set_ylim(len(figure.rows) - 0.4, -0.6)
    axes.set_aspect("equal")


def _reach(series: Series) -> list[list[float]] | None:
    """(2, points): how far the interval reaches below and above each value."""
    if series.low is None or series.high is None:
        return None
    pairs = list(zip(series.y, series.low, series.high, strict=True))
    return [[max(0.0, y - low) for y, low, _ in pairs], [max(0.0, high - y) for y, _, high in pairs]]


def _look(number: int) -> dict[str, Any]:
    return {
        "color": SERIES[number % len(SERIES)],
        "marker": MARKERS[(number + number // len(SERIES)) % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.4,
        "elinewidth": 1.4,
        "capsize": 0,
    }
