"""What ``multiticket train --dry-run`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multiticket.cli.plan import ROWS, SUMS, binary_size


def print_preview(preview: Mapping[str, Any]) -> None:
    """Settings with those that were changed marked, then what is trained, memory, and work."""
    from rich import box
    from rich.filesize import decimal
    from rich.table import Table

    from multiticket.research.report.tables import wide_console

    console = wide_console()
    settings = Table(
        title="settings (* not the default)", box=box.SIMPLE, title_justify="left", show_header=False
    )
    changed = set(preview["changed"])
    for name, value in _flat(preview["settings"]).items():
        mark = "*" if name in changed else ""
        settings.add_row(mark, name, "none" if value is None else str(value), style="bold" if mark else None)
    console.print(settings)

    memory = Table(title="memory", box=box.SIMPLE, title_justify="left", show_header=False)
    memory.add_column()
    memory.add_column(justify="right")
    for name, label in ROWS:
        if preview["memory"][name]:
            style = "bold" if name in SUMS else None
            memory.add_row(label, binary_size(preview["memory"][name]), style=style)
    memory.add_row("peak", binary_size(preview["memory"]["peak"]), style="bold")
    console.print(memory)

    work, measured = preview["work"], preview["evaluation"]
    rows = {
        "run folder": preview["output"],
        "trained": f"{preview['trained']:,} of {preview['parameters']:,} parameters, "
        f"{decimal(preview['trained_bytes'])} to keep",
        "optimiser steps": f"{work['optimiser_steps']:,}, passes through the model in each: {work['passes_a_step']:,}",
        "problems": f"{work['problems_a_step']:,} a step of {work['problems']:,}: {work['epochs']:.2g} epochs",
        "rollouts": f"{work['rollouts']:,}",
        "tokens": f"at most {work['generated_tokens_at_most']:,} generated, "
        f"{work['trained_tokens_at_most']:,} trained on "
        f"(longest prompt {work['longest_prompt']:,}, completion {work['longest_completion']:,})",
        "evaluation": f"{measured['problems']:,} {measured['split']} problems before and after: "
        f"{measured['completions']:,} completions, at most {measured['generated_tokens_at_most']:,} tokens",
        "checkpoints": f"{work['checkpoints']:,}",
    }
    table = Table(title="work", box=box.SIMPLE, title_justify="left", show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)
    for note in preview["notes"]:
        console.print(note)
    console.print("Nothing was written: without --dry-run, this runs.", style="dim")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in their order, those of the evaluation as ``eval.NAME``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "eval":
            flat.update({f"eval.{inner}": one for inner, one in value.items()})
        else:
            flat[name] = value
    return flat
