"""Problems from outside: JSON lines in a folder, or a data set of the hub through `datasets`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Problems = list[tuple[str, str]]
"""(prompt, answer), in order."""


def read_json_lines(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects in a file, one a line, of which each has `columns`. ValueError names the line that has not."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the problems in {path}: {error}.") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from None
        missing = [column for column in columns if not isinstance(row, dict) or column not in row]
        if missing:
            raise ValueError(
                f"{path}, line {number} has no {missing[0]!r}: each line needs {', '.join(columns)}."
            )
        rows.append(row)
    return rows


def load_hub(name: str, split: str, config: str | None = None, instead: str = "") -> list[dict[str, Any]]:
    """The rows of a data set's split. ValueError, with what to do `instead`, where it cannot be had."""
    from datasets import load_dataset

    try:
        return list(load_dataset(name, config, split=split))
    except Exception as error:  # the hub's client, the network and the file system each have their own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"Cannot load {split} of the data set {name!r} ({reason}){instead}.") from None


def hold_out(problems: Problems, count: int) -> tuple[Problems, Problems]:
    """`count` problems for validation, and the rest in their order.

    Which ones depends on each prompt alone (the smallest SHA-256), not on the order or on chance, so that the same
    problems are held out everywhere.
    """
    ordered = sorted(
        problems, key=lambda problem: hashlib.sha256(problem[0].encode("utf-8", "replace")).digest()
    )
    held = ordered[:count]
    names = {prompt for prompt, _ in held}
    return held, [problem for problem in problems if problem[0] not in names]


def without_repeats(problems: Iterable[tuple[str, str]], taken: Iterable[tuple[str, str]] = ()) -> Problems:
    """`problems` without prompts that came before or are in `taken`."""
    seen = {prompt for prompt, _ in taken}
    kept = []
    for prompt, answer in problems:
        if prompt not in seen:
            seen.add(prompt)
            kept.append((prompt, answer))
    return kept
