"""``multiticket train``: one RLVR run."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from multiticket.config.options import Option

OPTIONS = {
    "config": Annotated[
        Path | None, typer.Option(help="YAML file with settings; options here go before it.")
    ],
    "output": Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME.")],
    "resume": Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")],
    "dry_run": Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and what it needs; write nothing.")
    ],
    "as_json": Annotated[bool, typer.Option("--json", help="Print the result as JSON.")],
    "verbose": Annotated[bool, typer.Option("--verbose", help="Let TRL and transformers talk.")],
}
"""What the command takes beside a run's settings."""


def register(app: typer.Typer) -> None:
    app.command("train")(_with_settings(train))


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every setting of a run, as :mod:`multiticket.config.options` reads them."""
    from multiticket.config.options import options

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [one for one in inspect.signature(command).parameters.values() if one.name in OPTIONS]
    parameters = [one.replace(kind=keyword, annotation=OPTIONS[one.name]) for one in own]
    for option in options():
        names = [f"{option.names[0]}/--no-{option.names[0][2:]}"] if option.kind is bool else option.names
        default = typer.Option(
            None,
            *names,
            help=option.help,
            rich_help_panel=option.panel,
            autocompletion=_words(option),
        )
        kind = option.kind | None
        parameters.append(inspect.Parameter(option.parameter, keyword, default=default, annotation=kind))

    def generated(**given: Any) -> None:
        command(**given)

    generated.__doc__ = command.__doc__
    generated.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    generated.__annotations__ = {one.name: one.annotation for one in parameters}
    return generated


def _words(option: Option) -> Callable[[str], list[str]] | None:
    """What a shell completes an option's value to, where that is one of a few words."""
    if not option.choices:
        return None

    def complete(incomplete: str) -> list[str]:
        return [word for word in option.choices if word.startswith(incomplete)]

    return complete


def train(
    config: Path | None = None,
    output: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
    verbose: bool = False,
    **given: Any,
) -> None:
    """Train one arm on a task by GRPO, and measure it before and after."""
    from multiticket import config as settings
    from multiticket.config.options import settings_of

    overrides = settings_of(given)
    if resume and dry_run:
        raise ValueError("A dry run looks at a run that is yet to start: leave --resume or --dry-run out.")
    if resume:
        run_config, output = _config_to_resume(output, config, overrides)
    else:
        overrides = _with_the_tickets_mask(config, overrides)
        run_config = settings.load(config, overrides)
        output = output or run_config.default_output()

    from multiticket import tasks
    from multiticket.runs.folder import RunFolder

    tasks.get(run_config.task)
    if not resume:
        RunFolder(output).refuse_to_overwrite()
    if dry_run:
        _preview(run_config, output, as_json, verbose)
        return

    from multiticket.train.callbacks.interrupt import RunInterrupted
    from multiticket.train.run import run_training

    try:
        result = run_training(run_config, output, resume=resume, verbose=verbose)
    except RunInterrupted as stop:
        print(f"multiticket: {stop}", file=sys.stderr)
        raise typer.Exit(stop.code) from None
    if stopped := result.get("stopped"):
        print(f"multiticket: {_collapse_in_words(stopped)}", file=sys.stderr)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        from multiticket.research.report.tables import print_result

        print_result(result, output)


def _preview(run_config: Any, output: Path, as_json: bool, verbose: bool) -> None:
    from multiticket.plan.preview import preview

    found = preview(run_config, output, verbose)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        from multiticket.cli.dry_run import print_preview

        print_preview(found)


def _with_the_tickets_mask(config: Path | None, overrides: dict[str, Any]) -> dict[str, Any]:
    """The overrides, with the settings that follow from the ticket to start from, if one is asked for."""
    from multiticket import config as settings

    asked = {**(settings.read_settings(config) if config else {}), **overrides}
    if asked.get("from_ticket") is None:
        return overrides
    from multiticket.train.start import settings_from_ticket

    return settings_from_ticket(asked["from_ticket"], asked)


def _collapse_in_words(stopped: dict[str, Any]) -> str:
    """What a collapse was, and what is left."""
    kept = f"what was kept is of step {stopped['kept_step']}, before it began"
    if stopped["kept_step"] == stopped["step"]:
        kept = (
            "there was no checkpoint from before it (see --save-every), so what was kept is of the last step"
        )
    return f"Stopped at step {stopped['step']}: {stopped['reason']}; {kept}."


def _config_to_resume(
    output: Path | None, config: Path | None, overrides: dict[str, Any]
) -> tuple[Any, Path]:
    """The settings of an interrupted run; only how far it goes and how often it saves may change."""
    from multiticket import config as settings
    from multiticket.runs.folder import RunFolder

    if output is None:
        output = settings.load(config, overrides).default_output()
    started = RunFolder(output).read_config()
    asked = {**(settings.read_settings(config) if config else {}), **overrides}
    merged = settings.build(
        {**started.model_dump(), **{k: asked[k] for k in settings.RESUMABLE if k in asked}}
    )
    whole = started.model_dump()
    for name, value in asked.items():
        if name in settings.RESUMABLE:
            continue
        if name == "from_ticket":
            value = str(Path(value).resolve())
        nested = name in ("eval", "grpo", "collapse") and isinstance(value, dict)
        now = {**whole[name], **value} if nested else value
        if whole.get(name) != now:
            raise ValueError(
                f"The run in {output} was started with {name} {whole.get(name)!r}, not {value!r}; "
                "leave that out to resume it."
            )
    return merged, output
