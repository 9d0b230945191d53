"""What a person should know of a task's splits before anything is measured on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multiticket.tasks.protocol import SPLITS

FEW_PROBLEMS = 30
"""Below so many problems even 0 and 100 % right have intervals of more than ten points."""


def before_a_run(task: Any, split: str, problems: int | None) -> list[str]:
    """Sentences: how many problems each split has, what the task adds, and where too few are measured to decide much.

    Args:
        split, problems: what is measured, and of how many problems from its beginning; None: of all.
    """
    sizes = {one: _size(task, one) for one in SPLITS}
    notes = task.notes() if hasattr(task, "notes") else []
    return [_in_words(task, sizes), *notes, *_few(split, sizes[split], problems)]


def before_a_measurement(task: Any, split: str, problems: int | None) -> list[str]:
    """The same for a measurement alone, which needs no other split."""
    size = len(task.problems(split))
    said = _in_words(task, {split: size})
    if problems is not None and problems < size:
        said += f" The first {problems:,} of them {'is' if problems == 1 else 'are'} measured."
    return [said, *_few(split, size, problems)]


def _size(task: Any, split: str) -> int | None:
    """None for a split that cannot be had: who needs it says why."""
    try:
        return len(task.problems(split))
    except Exception:
        return None


def _in_words(task: Any, sizes: Mapping[str, int | None]) -> str:
    known = {split: size for split, size in sizes.items() if size is not None}
    said = ", ".join(f"{size:,} {split}" for split, size in known.items())
    cut = [split for split in getattr(task, "cut", ()) if split in sizes]
    source = f" ({' and '.join(cut)} cut from train by a hash of the prompt)" if cut else ""
    last = next(reversed(known.values()), 0)
    return f"{said} {_problems(last)}{source}."


def _few(split: str, size: int | None, problems: int | None) -> list[str]:
    if size is None:
        return []
    few = size if problems is None else min(problems, size)
    if not 0 < few < FEW_PROBLEMS:
        return []
    more = "Measure more with --problems." if few < size else f"Give the task more {split} problems."
    measured = f"{few} {split} {_problems(few)}"
    points = min(98 / few**0.5, 50)
    return [f"With {measured} a 95 % interval around 50 % reaches {points:.0f} points to either side. {more}"]


def _problems(count: int) -> str:
    return "problem" if count == 1 else "problems"
