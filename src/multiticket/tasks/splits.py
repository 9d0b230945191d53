"""What a person should know of a task's splits before anything is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multiticket.tasks.protocol import SPLITS

FEW_PROBLEMS = 30
"""Below so many problems even 0 and 100 % right have intervals of more than ten points."""


def before_a_run(task: Any, split: str, problems: int | None) -> list[str]:
    """Sentences: how many problems each split has, what the task adds, and where too few are measured to decide much.

    Args:
        split, problems: what is measured, and of how many problems from its beginning; None: of all.
    """
    notes = task.notes() if hasattr(task, "notes") else []
    return [*_sizes(task, SPLITS), *notes, *_few(task, split, problems)]


def before_a_measurement(task: Any, split: str, problems: int | None) -> list[str]:
    """The same for a measurement alone, which needs no other split."""
    size = len(task.problems(split))
    measured = size if problems is None else min(problems, size)
    part = [f"The first {measured:,} of them are measured."] if measured < size else []
    return [" ".join([*_sizes(task, [split]), *part]), *_few(task, split, problems)]


def _sizes(task: Any, splits: Sequence[str]) -> list[str]:
    sizes = {split: _size(task, split) for split in splits}
    said = ", ".join(f"{size:,} {split}" for split, size in sizes.items() if size is not None)
    cut = [split for split in getattr(task, "cut", ()) if split in sizes]
    source = f" ({' and '.join(cut)} cut from train by a hash of the prompt)" if cut else ""
    return [f"{said} problems{source}."] if said else []


def _size(task: Any, split: str) -> int | None:
    """None for a split that cannot be had: who needs it says why."""
    try:
        return len(task.problems(split))
    except Exception:
        return None


def _few(task: Any, split: str, problems: int | None) -> list[str]:
    size = len(task.problems(split))
    few = size if problems is None else min(problems, size)
    if not 0 < few < FEW_PROBLEMS:
        return []
    more = "Measure more with --problems." if few < size else f"Give the task more {split} problems."
    return [
        f"With {few} {split} problems a 95 % interval around 50 % reaches {min(98 / few**0.5, 50):.0f} points to "
        f"either side. {more}"
    ]
