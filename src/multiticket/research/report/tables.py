"""Tables in a terminal and in Markdown: of any record, and of runs, evaluations and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table as Grid

from multiticket.arms.facts import ARMS
from multiticket.research.study.page_section import Entry, Table


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def with_interval(scores: Mapping[str, Any], name: str = "pass@1", interval: str = "interval") -> str:
    """``61.3 % (58.0 to 64.5)``: a score with its 95 % interval."""
    low, high = scores[interval]
    return f"{percent(scores[name])} ({100 * low:.1f} to {100 * high:.1f})"


def entry_text(entry: Entry) -> str:
    """A table's entry: numbers with thousands apart, or with four digits."""
    if isinstance(entry, (int, float)):
        return f"{entry:,}" if isinstance(entry, int) else f"{entry:.4g}"
    return entry or ""


def markdown(record: Table) -> str:
    """A table as Markdown, without its caption."""
    rows = ([*map(entry_text, row)] for row in record.rows)
    lines = (record.columns, ["---"] * len(record.columns), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_table(record: Table) -> None:
    """Any table in a terminal: rows are named on the left, all else is set to the right."""
    grid = Grid(title=record.caption, box=box.SIMPLE, title_justify="left")
    for number, column in enumerate(record.columns):
        grid.add_column(column, justify="right" if number else "left")
    for row in record.rows:
        grid.add_row(*map(entry_text, row))
    wide_console().print(grid)


def print_facts(facts: Iterable[tuple[str, str]], title: str | None = None) -> None:
    """Names and what there is to say of each, a line each."""
    grid = Grid(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
    grid.add_column(style="bold")
    for fact in facts:
        grid.add_row(*fact)
    wide_console().print(grid)


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
            rate(result),
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
    print_table(Table(caption=title, columns=[*RUN_COLUMNS], rows=rows))


def rate(result: Mapping[str, Any]) -> str:
    """A run's learning rate; ``not found`` where the search for one never saw a step with signal."""
    found = result["learning_rate"]
    return "not found" if found is None else f"{found:g}"


def signal(result: Mapping[str, Any]) -> str:
    """How much of a run's rollouts said anything about the policy."""
    said = f"rewards differed in {percent(1 - result['no_signal'])} of the groups of rollouts"
    if result["no_signal"] == 1:
        said += ": nothing could be learned from them, and nothing was"
    return said


def print_result(result: Mapping[str, Any], output: Path) -> None:
    """What one run came to, and where it lies."""
    before, after, shipped = (result["eval"].get(when) for when in ("before", "after", "shipped"))
    run = f"{arm_name(result)} on {result['task']}, {result['steps']} steps, rate {rate(result)}"
    print_facts(
        [
            ("run", run),
            ("trained", f"{result['nnz']:,} of {result['numel']:,} parameters"),
            ("pass@1 before", with_interval(before)),
            ("pass@1 after", with_interval(after)),
            ("greedy", f"{percent(before['greedy'])} before, {percent(after['greedy'])} after"),
            ("mean reward", f"{before['reward']:.4f} before, {after['reward']:.4f} after"),
            *([("signal", signal(result))] if result.get("no_signal") is not None else []),
            *([("failures", f"{result['failures']:,} scores failed")] if result.get("failures") else []),
            *([("merged", _shipped(shipped))] if shipped else []),
            ("measured", measured(after)),
            ("file", f"{output / result['file']} ({decimal(result['file_bytes'])})"),
            ("time", f"{result['wall_s']:.1f} s in total, training {result['train_s']:.1f} s"),
        ]
    )


def _shipped(scores: Mapping[str, Any]) -> str:
    return f"{with_interval(scores)}, greedy {percent(scores['greedy'])}, rounded to {scores['dtype']} as the base is"


def print_evaluation(summary: Mapping[str, Any]) -> None:
    """One evaluation."""
    places = ("model", "ticket", "adapter", "checkpoint", "dtype", "task", "results")
    more = sorted(int(name[5:]) for name in summary if name.startswith("pass@") and name != "pass@1")
    print_facts(
        [
            *((name, str(summary[name])) for name in places if name in summary),
            ("pass@1", with_interval(summary)),
            *((f"pass@{k}", percent(summary[f"pass@{k}"])) for k in more),
            ("greedy", with_interval(summary, "greedy", "greedy_interval")),
            ("mean reward", f"{summary['reward']:.4f}"),
            ("measured", measured(summary)),
        ]
    )


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Of two sides, one column a measure; what the numbers are below."""
    measures = ("pass@1", "greedy")
    found = [comparison[name] for name in measures]
    rows: list[list[Entry]] = [
        [f"{side.upper()}: {', '.join(comparison[side])}", *(percent(one[side]) for one in found)]
        for side in ("a", "b")
    ]
    rows.append(["B - A, points", *(points(one["difference"]) for one in found)])
    for label, name in (("95 % interval", "interval"), ("95 % by bootstrap", "bootstrap")):
        rows.append([label, *(" to ".join(map(points, one[name])) for one in found)])
    rows.append(["above, with 95 % confidence", *(points(one["lower_bound"]) for one in found)])
    test = comparison["greedy"].get("mcnemar")
    if test is not None:
        split = f"{test['only_a']} and {test['only_b']}, p = {test['p_value']:.2g}"
        rows.append(["only A right, only B right (McNemar, exact)", "", split])
    print_table(Table(caption="", columns=["", *measures], rows=rows))
    runs = [len(comparison["a"]), len(comparison["b"])]
    units = "over problems" if max(runs) == 1 else f"over problems and runs ({runs[0]} and {runs[1]})"
    console = wide_console()
    for name, one in zip(measures, found, strict=True):
        console.print(f"{name}: {one['verdict']}.")
    console.print(f"{comparison['n']} problems, the same on both sides; intervals {units}.", style="dim")
    if min(runs) == 1:
        console.print(
            "With one run on a side, variation between training seeds is not measured.", style="dim"
        )


def points(share: float) -> str:
    """A difference of shares in percentage points: ``+1.5``."""
    return f"{100 * share:+.1f}"


def measured(scores: Mapping[str, Any]) -> str:
    return (
        f"{scores['n']} {scores['split']} problems, {scores['samples']} samples each at temperature "
        f"{scores['temperature']:g}; 95 % intervals over problems"
    )


def wide_console() -> Console:
    """Standard output; as wide as a table needs where that is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
