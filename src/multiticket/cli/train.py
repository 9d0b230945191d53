"""``multiticket train``: one RLVR run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from multiticket.cli.outputs import Command, Json, give, one_model, refuse_unwritable
from multiticket.cli.settings import with_settings


def register(app: typer.Typer) -> None:
    from multiticket.config.options import options

    settings = [(option, option.names) for option in options()]
    app.command("train", cls=Command)(with_settings(train, settings))


def train(
    model_argument: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The model, as with --model.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; options on the command line override it.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and what it needs; write nothing.")
    ] = False,
    json: Json = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show messages of TRL and transformers.")
    ] = False,
    **given: Any,
) -> None:
    """Train a model on a task by GRPO, and evaluate it before and after."""
    from multiticket import config as settings
    from multiticket.config.options import settings_of
    from multiticket.runs.folder import RunFolder
    from multiticket.runs.ranks import join

    ranks = join()
    with ranks.together():
        given["model"] = one_model(model_argument, given["model"])
        refuse_unwritable(json)
        overrides = settings_of(given)
        if resume and dry_run:
            raise ValueError("A dry run is of a new run: omit --resume or --dry-run.")
        if resume:
            run_config, output = _config_to_resume(output, config, overrides)
        else:
            overrides = _with_the_tickets_mask(config, overrides)
            run_config = settings.load(config, overrides)
            output = output or run_config.default_output()

        from multiticket import tasks

        tasks.get(run_config.task)
        if not resume:
            RunFolder(output).refuse_to_overwrite()
    if dry_run:
        ranks.by_first(lambda: _preview(run_config, output, json))
        return

    from multiticket.train.callbacks.interrupt import RunInterrupted
    from multiticket.train.run import run_training

    try:
        result = run_training(run_config, output, resume=resume, verbose=verbose)
    except RunInterrupted as stop:
        if ranks.first:
            print(f"multiticket: {stop}", file=sys.stderr)
        raise typer.Exit(stop.code) from None
    if ranks.first:
        _give(result, output, json)


def _give(result: dict[str, Any], output: Path, json: str | None) -> None:
    if stopped := result.get("stopped"):
        print(f"multiticket: {_collapse_in_words(stopped)}", file=sys.stderr)
    from multiticket.research.report.tables import print_result

    give(result, json, lambda: print_result(result, output))


def _preview(run_config: Any, output: Path, json: str | None) -> None:
    from multiticket.cli.dry_run import print_preview
    from multiticket.plan.preview import preview

    found = preview(run_config, output)
    give(found, json, lambda: print_preview(found))


def _with_the_tickets_mask(config: Path | None, overrides: dict[str, Any]) -> dict[str, Any]:
    """The overrides, with the settings that follow from the ticket to start from, if one is asked for."""
    from multiticket import config as settings

    asked = {**(settings.read_settings(config) if config else {}), **overrides}
    if asked.get("from_ticket") is None:
        return overrides
    from multiticket.arms.start import settings_from_ticket

    return settings_from_ticket(asked["from_ticket"], asked)


def _collapse_in_words(stopped: dict[str, Any]) -> str:
    """What a collapse was, and what is left."""
    kept = f"step {stopped['kept_step']}, before the collapse, was kept"
    if stopped["kept_step"] == stopped["step"]:
        kept = "there was no earlier checkpoint (see --save-every), so the last step was kept"
    return f"Stopped at step {stopped['step']}: {stopped['reason']}; {kept}."


def _config_to_resume(
    output: Path | None, config: Path | None, overrides: dict[str, Any]
) -> tuple[Any, Path]:
    """The settings of an interrupted run; only how far it goes and how often it saves may change."""
    from multiticket import config as settings
    from multiticket.runs.folder import RunFolder
    from multiticket.runs.kept import ticket_file

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
            value = str(ticket_file(Path(value)).resolve())
        nested = name in ("eval", "grpo", "collapse") and isinstance(value, dict)
        now = {**whole[name], **value} if nested else value
        if whole.get(name) != now:
            raise ValueError(
                f"The run in {output} was started with {name} {whole.get(name)!r}, not {value!r}; omit it to resume."
            )
    return merged, output
