"""Results as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from multiticket.arms.facts import ARMS
from multiticket.research.study.page_section import Entry
from multiticket.research.study.page_section import Table as TableRecord


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def with_interval(scores: Mapping[str, Any], name: str = "pass@1", interval: str = "interval") -> str:
    """``61.3 % (58.0 to 64.5)``: a score with its 95 % interval."""
    low, high = scores[interval]
    return f"{percent(scores[name])} ({100 * low:.1f} to {100 * high:.1f})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of Markdown; cells are text already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def entry_text(entry: Entry) -> str:
    """A table's entry in a terminal, or in Markdown: numbers with four digits."""
    return "" if entry is None else f"{entry:.4g}" if isinstance(entry, float) else str(entry)


def print_table(record: TableRecord) -> None:
    """Any table in a terminal: rows are named on the left, all else is set to the right."""
    table = Table(title=record.caption, box=box.SIMPLE, title_justify="left")
    for number, column in enumerate(record.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in record.rows:
        table.add_row(*map(entry_text, row))
    wide_console().print(table)


def run_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row a run: arm, base, after, trained parameters, file size, learning rate."""
    return [
        (
            arm_name(result),
            percent(result["eval"]["before"]["pass@1"]),
            with_interval(result["eval"]["after"]),
            with_interval(result["eval"]["after"], "greedy", "greedy_interval"),
            f"{result['nnz']:,} of {result['numel']:,}",
            decimal(result["file_bytes"]),
            f"{result['learning_rate']:g}",
            f"{result['wall_s']:.0f} s",
        )
        for result in results
    ]


RUN_COLUMNS = ("arm", "base", "after", "after, greedy", "trained parameters", "file", "rate", "time")


def arm_name(result: Mapping[str, Any], short: bool = False) -> str:
    """``full``, ``lora rank 4 (seed 0)`` or ``ticket 1 % (seed 0)``; of a ticket `short`: ``1 %, seed 0``."""
    return ARMS[result["arm"]].run_name(result, short)


def print_runs(results: Sequence[Mapping[str, Any]], title: str) -> None:
    """One table for runs on one task."""
    rows: list[list[Entry]] = [[*row] for row in run_rows(results)]
    print_table(TableRecord(caption=title, columns=[*RUN_COLUMNS], rows=rows))


def print_result(result: Mapping[str, Any], output: Path) -> None:
    """What one run came to, and where it lies."""
    before, after = result["eval"]["before"], result["eval"]["after"]
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "run",
        f"{arm_name(result)} on {result['task']}, {result['steps']} steps, rate {result['learning_rate']:g}",
    )
    table.add_row("trained", f"{result['nnz']:,} of {result['numel']:,} parameters")
    table.add_row("pass@1 before", with_interval(before))
    table.add_row("pass@1 after", with_interval(after))
    table.add_row("greedy", f"{percent(before['greedy'])} before, {percent(after['greedy'])} after")
    table.add_row("measured", measured(after))
    table.add_row("file", f"{output / result['file']} ({decimal(result['file_bytes'])})")
    table.add_row("time", f"{result['wall_s']:.1f} s in all, of which training {result['train_s']:.1f} s")
    wide_console().print(table)


def print_evaluation(summary: Mapping[str, Any]) -> None:
    """One evaluation."""
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name in ("model", "ticket", "adapter", "checkpoint", "task", "results"):
        if name in summary:
            table.add_row(name, str(summary[name]))
    table.add_row("pass@1", with_interval(summary))
    for name in sorted(
        (n for n in summary if n.startswith("pass@") and n != "pass@1"), key=lambda n: int(n[5:])
    ):
        table.add_row(name, percent(summary[name]))
    table.add_row("greedy", with_interval(summary, "greedy", "greedy_interval"))
    table.add_row("mean reward", f"{summary['reward']:.4f}")
    table.add_row("measured", measured(summary))
    wide_console().print(table)


def measured(scores: Mapping[str, Any]) -> str:
    return (
        f"{scores['n']} {scores['split']} problems, {scores['samples']} samples each at temperature "
        f"{scores['temperature']:g}; 95 % intervals over problems"
    )


def wide_console() -> Console:
    """Standard output; as wide as a table needs where that is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
