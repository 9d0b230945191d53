"""A comparison of two sides as a table in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from multiticket.research.report.tables import percent, wide_console


def points(share: float) -> str:
    """A difference of shares in percentage points: ``+1.5``."""
    return f"{100 * share:+.1f}"


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """One column a measure; what the numbers are below."""
    measures = ("pass@1", "greedy")
    found = [comparison[name] for name in measures]
    table = Table(box=box.SIMPLE)
    table.add_column("")
    for name in measures:
        table.add_column(name, justify="right")
    for side in ("a", "b"):
        label = f"{side.upper()}: {', '.join(comparison[side])}"
        table.add_row(label, *(percent(one[side]) for one in found))
    table.add_row("B - A, points", *(points(one["difference"]) for one in found), style="bold")
    for label, name in (("95 % interval", "interval"), ("95 % by bootstrap", "bootstrap")):
        table.add_row(label, *(" to ".join(map(points, one[name])) for one in found))
    table.add_row("above, with 95 % confidence", *(points(one["lower_bound"]) for one in found))
    test = comparison["greedy"].get("mcnemar")
    if test is not None:
        split = f"{test['only_a']} and {test['only_b']}, p = {test['p_value']:.2g}"
        table.add_row("only A right, only B right (McNemar, exact)", "", split)
    console = wide_console()
    console.print(table)
    for name, one in zip(measures, found, strict=True):
        console.print(f"{name}: {one['verdict']}.")
    runs = [len(comparison["a"]), len(comparison["b"])]
    units = "over problems" if max(runs) == 1 else f"over problems and runs ({runs[0]} and {runs[1]})"
    console.print(f"{comparison['n']} problems, the same on both sides; intervals {units}.", style="dim")
    if min(runs) == 1:
        console.print("One run of a side says nothing about how its training varies by seed.", style="dim")
