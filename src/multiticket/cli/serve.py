"""``multiticket serve``: one base and many tickets behind the OpenAI API, by vLLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from multiticket.cli.outputs import one_model


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)


def serve(
    context: typer.Context,
    base: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="The base: a folder, a GGUF file, a hub name, or a shipped base."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base; the same as MODEL.")] = None,
    ticket: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="A ticket of this base and its name in the API; may be repeated."
        ),
    ] = None,
) -> None:
    """Serve a base and its tickets; a request's model field selects one. Other options go to 'vllm serve'."""
    from multiticket import bases
    from multiticket.integrations.vllm.command import serve_command
    from multiticket.runs.kept import ticket_file

    base = one_model(base, model)
    if base is None:
        raise ValueError("Give a base: multiticket serve MODEL.")
    tickets: dict[str, Path] = {}
    for text in ticket or []:
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise ValueError(f"Write --ticket NAME=FILE, not --ticket {text}.")
        if name in tickets:
            raise ValueError(f"Two tickets are called {name!r}; give each its own name.")
        tickets[name] = ticket_file(Path(file))
    place = bases.resolve(base)
    named = any(option.startswith(("--served-model-name", "--served_model_name")) for option in context.args)
    command, environment = serve_command(
        place, tickets, context.args, None if named or place == base else base
    )
    os.execve(command[0], command, environment)  # vLLM's exit code is ours
