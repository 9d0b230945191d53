"""Problems from outside: JSON lines in a folder, or a data set of the hub through `datasets`."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from multiticket.errors import why_not_loaded

Problems = list[tuple[str, str]]
"""(prompt, answer), in order."""
Row = TypeVar("Row", bound=tuple[Any, ...])
"""A problem: a tuple that begins with its prompt."""


def read_json_lines(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects in a file, one a line, of which each has `columns`. ValueError names the line that has not.

    A byte order mark is skipped. Half of a surrogate pair (`\\ud83d` alone), which no file or model can hold, becomes
    U+FFFD, with a warning that counts such lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the problems in {path}: {error}.") from None
    rows, mended = [], 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} is {line.strip()[:40]!r}: each line needs an object with {', '.join(columns)}."
            )
        missing = [column for column in columns if column not in row]
        if missing:
            found = ", ".join(map(repr, row)) or "nothing"
            raise ValueError(
                f"{path}, line {number} has no {missing[0]!r}, but {found}: each line needs {', '.join(columns)}."
            )
        whole = _without_halves(row)
        mended += whole != row
        rows.append(whole)
    if mended:
        warnings.warn(
            f"{path}: {mended} of {len(rows)} lines contain half of a surrogate pair, read as U+FFFD.",
            stacklevel=2,
        )
    return rows


def _without_halves(value: Any) -> Any:
    """A JSON value with U+FFFD in the place of lone surrogates."""
    if isinstance(value, str):
        return (
            value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )
    if isinstance(value, list):
        return [_without_halves(item) for item in value]
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    return value


def readable(
    rows: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], tuple[str, str]], of: str
) -> Problems:
    """The problems that `read` makes of rows. Those that it refuses are left out, with a warning that counts them.

    Raises ValueError where it refuses every row.
    """
    problems, refused = [], []
    for row in rows:
        try:
            problems.append(read(row))
        except ValueError as error:
            refused.append(str(error))
    if refused and not problems:
        raise ValueError(refused[0])
    if refused:
        warnings.warn(
            f"{len(refused)} of {len(rows)} problems of {of} are left out: {refused[0]}", stacklevel=2
        )
    return problems


def load_hub(name: str, split: str, config: str | None = None, instead: str = "") -> list[dict[str, Any]]:
    """The rows of a data set's split. ValueError, with what to do `instead`, where it cannot be had."""
    from datasets import load_dataset

    try:
        return list(load_dataset(name, config, split=split))
    except Exception as error:  # the hub's client, the network and the file system each have their own
        reason = why_not_loaded(error)
        raise ValueError(f"Cannot load {split} of the data set {name!r} ({reason}){instead}.") from None


def hold_out(problems: list[Row], count: int) -> tuple[list[Row], list[Row]]:
    """`count` problems for validation, and the rest in their order.

    Which ones depends on each prompt alone (the smallest SHA-256), not on the order or on chance, so that the same
    problems are held out everywhere.
    """
    ordered = sorted(
        problems, key=lambda problem: hashlib.sha256(problem[0].encode("utf-8", "replace")).digest()
    )
    held = ordered[:count]
    names = {problem[0] for problem in held}
    return held, [problem for problem in problems if problem[0] not in names]


def without_repeats(problems: Iterable[Row], taken: Iterable[Row] = ()) -> list[Row]:
    """`problems` without prompts that came before or are in `taken`."""
    seen = {problem[0] for problem in taken}
    kept = []
    for problem in problems:
        if problem[0] not in seen:
            seen.add(problem[0])
            kept.append(problem)
    return kept
