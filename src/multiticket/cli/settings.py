"""Settings of a run as options of a command, beside what the command takes itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer

from multiticket.config.options import Option


def with_settings(command: Callable[..., None], settings: Iterable[tuple[Option, Sequence[str]]]) -> Any:
    """The command with an option for each setting; what is given of them comes as keywords, None for the others.

    Args:
        settings: each with the names it goes by.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        one.replace(kind=keyword)
        for one in inspect.signature(command, eval_str=True).parameters.values()
        if one.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for option, names in settings:
        shown = typer.Option(
            None,
            *([f"{names[0]}/--no-{names[0][2:]}"] if option.kind is bool else names),
            help=option.help,
            rich_help_panel=option.panel,
            autocompletion=_completion(option),
        )
        kind = option.kind | None
        parameters.append(inspect.Parameter(option.parameter, keyword, default=shown, annotation=kind))

    def generated(**given: Any) -> None:
        command(**given)

    generated.__doc__ = command.__doc__
    generated.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    generated.__annotations__ = {one.name: one.annotation for one in parameters}
    return generated


def _completion(option: Option) -> Callable[[str], list[str]] | None:
    """What a shell completes an option's value to, where that is one of a few words."""
    if not option.choices:
        return None

    def complete(incomplete: str) -> list[str]:
        return [word for word in option.choices if word.startswith(incomplete)]

    return complete
