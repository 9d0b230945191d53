"""What a command hands back: a table for a person, JSON for a program; and files looked at before it begins."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

STANDARD_OUTPUT = "-"
PICTURES = (".svg", ".png", ".pdf")
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE.json|-",
        help="Write the result as JSON to a file, or with - (or nothing) print it instead of the table.",
    ),
]


class Command(TyperCommand):
    """A command whose ``--json`` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_json_places(args))


def with_json_places(words: list[str]) -> list[str]:
    """The words with ``--json`` joined to its file, which ends in .json, or to ``-`` where none follows."""
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*found, word, *rest]
        if word == "--json":
            named = bool(rest) and (rest[0] == STANDARD_OUTPUT or Path(rest[0]).suffix == ".json")
            word = f"--json={rest.pop(0) if named else STANDARD_OUTPUT}"
        found.append(word)
    return found


def give(result: Any, place: str | None, show: Callable[[], Any]) -> None:
    """Show a result, or print it as JSON; where `place` names a file, write it there as well."""
    if place == STANDARD_OUTPUT:
        print(json.dumps(plain(result), indent=2))
        return
    if place is not None:
        from multiticket.runs.files import write_json

        write_json(Path(place), plain(result))
    show()


def plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: null in their place."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_model(positional: str | None, option: str | None) -> str | None:
    """The model that a command was given, in its place or by ``--model``."""
    if positional is not None and option is not None and positional != option:
        raise ValueError(f"Two models were given, {positional} and --model {option}: give one.")
    return positional if positional is not None else option


def refuse_unwritable(*places: Path | str | None) -> None:
    """What would fail after minutes of measuring fails now: a file without a folder, or in a folder's place."""
    for place in places:
        if place is None or place == STANDARD_OUTPUT:
            continue
        path = Path(place)
        if not path.absolute().parent.is_dir():
            raise ValueError(f"There is no folder {path.parent} to write {path.name} to; create it first.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file to write.")


def refuse_picture(plot: Path | None) -> None:
    """The same for a picture that cannot be drawn."""
    if plot is not None and plot.suffix not in PICTURES:
        raise ValueError(f"--plot writes {', '.join(PICTURES)}, not {plot.suffix or plot.name!r}.")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'multiticket[train]'.")
