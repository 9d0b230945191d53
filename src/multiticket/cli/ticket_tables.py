"""How the ticket commands show what they found: facts, tables, JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from multiticket.ticket import Ticket
    from multiticket.ticket.describe import Change

BAR = 24
"""Length of the longest bar."""


def facts(path: Path, ticket: Ticket) -> dict[str, Any]:
    """What a ticket file says of itself, as JSON would have it."""
    size = path.stat().st_size
    shapes = {name: shape for section in ticket.sections for name, shape in section.mask.shapes.items()}
    return {
        "file": str(path),
        "bytes": size,
        "bytes_per_value": size / ticket.nnz,
        "nnz": ticket.nnz,
        "numel": sum(math.prod(shape) for shape in shapes.values()),
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in ticket.dtypes],
        "rules": [json.loads(section.mask.rule.to_json()) for section in ticket.sections],
        "fingerprints": [section.fingerprint for section in ticket.sections],
        "provenance": ticket.provenance,
    }


def facts_table(facts: dict[str, Any]) -> Table:
    """`facts`, a line each."""
    rows = [
        ["file", f"{facts['file']} ({facts['bytes']:,} bytes, {facts['bytes_per_value']:.3f} a value)"],
        ["values", f"{facts['nnz']:,} of {facts['numel']:,} in {', '.join(facts['dtypes'])}"],
    ]
    for rule, fingerprint in zip(facts["rules"], facts["fingerprints"], strict=True):
        told = ", ".join(
            f"{k} {json.dumps(v)}" for k, v in rule.items() if v not in (None, {}) and k != "version"
        )
        rows += [["rule", told], ["base", fingerprint]]
    for key, value in facts["provenance"].items():
        text = json.dumps(value)
        rows.append([json.dumps(key)[1:-1], text if len(text) <= 300 else f"{text[:300]} ..."])
    return table(None, ["", ""], rows)


def layers_table(layers: dict[str, Change], known: bool) -> Table:
    """One row a layer, with a bar as long as its root-mean-square change."""
    rms = {
        name: (change.squared / change.values) ** 0.5 if change.values else 0.0
        for name, change in layers.items()
    }
    longest = max(rms.values()) or 1.0
    rows = [
        [
            name,
            f"{change.values:,}",
            f"{change.values / change.numel:.3%}",
            f"{change.norm:.4g}",
            f"{change.largest:.4g}",
            f"{change.moved / change.values:.1%}" if known and change.values else "",
            "█" * round(BAR * rms[name] / longest),
        ]
        for name, change in layers.items()
    ]
    of = "change" if known else "values"
    return table(
        f"Norm of the {of} by layer", ["", "values", "density", "norm", "largest", "moved", f"rms {of}"], rows
    )


def table(title: str | None, columns: list[str], rows: list[list[str]]) -> Table:
    """Cells are shown as they are: markup in a file's own text has no effect."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, box=SIMPLE, show_header=any(columns), title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def show(*things: Table | str) -> None:
    """Print tables, and text without markup."""
    from rich.console import Console
    from rich.text import Text

    for thing in things:
        Console().print(Text(thing) if isinstance(thing, str) else thing)
