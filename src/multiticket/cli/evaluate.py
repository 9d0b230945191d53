"""``multiticket eval``: how often a base, a ticket, an adapter or a checkpoint is right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from multiticket.cli.outputs import Command, Json, give, one_model, refuse_unwritable
from multiticket.cli.settings import with_settings

ASKED = ("dtype", "max_completion_tokens", "system_prompt", "prompt_template", "examples")
"""A run's settings that a measurement takes beside those of the evaluation."""


def register(app: typer.Typer) -> None:
    from multiticket.config.options import options

    settings = [
        (option, ["--" + option.path[-1].replace("_", "-")])
        for option in options()
        if option.path[0] in ("eval", *ASKED)
    ]
    app.command("eval", cls=Command)(with_settings(evaluate, settings))


def evaluate(
    model_argument: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A shipped base, a checkpoint folder, a GGUF file, a hub name, or a finished run's folder.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model; the same as MODEL.")] = None,
    ticket: Annotated[
        Path | None,
        typer.Option(help="A ticket file or a run's folder, evaluated on MODEL or the base that it names."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A run's checkpoints/step-N folder.")] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a PEFT adapter or a run, evaluated on MODEL or the base that it names."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The task; default: the ticket's or the run's, else arithmetic.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File for per-problem results; default for a run: in its evals folder."),
    ] = None,
    json: Json = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show messages of transformers.")] = False,
    **given: Any,
) -> None:
    """Evaluate greedy and sampled accuracy on a fixed set of problems, with 95 % intervals."""
    from multiticket import config
    from multiticket.config.options import settings_of
    from multiticket.runs.folder import RunFolder
    from multiticket.runs.kept import adapter_folder, is_run, kept_by, ticket_file

    if sum(one is not None for one in (ticket, checkpoint, adapter)) > 1:
        raise ValueError("Give one of a ticket, an adapter and a checkpoint.")
    refuse_unwritable(json)
    if output is not None:
        _require_writable(output)
    model = one_model(model_argument, model)
    if model is not None and is_run(Path(model)):
        made = kept_by(Path(model))
        whole = made.name == "model"
        if checkpoint or ((ticket or adapter) and not whole):
            raise ValueError(f"{model} is a run that is already trained: give its base as MODEL.")
        if not (ticket or adapter):
            task = task or RunFolder(Path(model)).read_config().task
            ticket, adapter = (made if made.is_file() else None), (made if made.name == "adapter" else None)
        model = str(made) if whole else None
    ticket = ticket_file(ticket) if ticket is not None else None
    adapter = adapter_folder(adapter) if adapter is not None else None
    settings = settings_of(given)
    run = config.build(settings)
    asking = {*settings} & {*ASKED} - {"dtype"}
    if task is not None:
        from multiticket import tasks

        tasks.get(task)

    from multiticket.evaluate.trained import Trained, measure, results_file
    from multiticket.runs.progress import RunProgress

    trained = Trained(ticket, adapter, checkpoint)
    with RunProgress("eval", 0) as progress:
        evaluation, about = measure(run, model, trained, task, progress.completions, progress.note)
    if output is None and not asking:  # the file's name does not tell how it was asked otherwise
        output = results_file(trained, about["task"], run.eval, about["dtype"])
    if output is not None:
        evaluation.save(output)
        about["results"] = str(output)
    summary = {**about, **evaluation.summary()}
    from multiticket.research.report.tables import print_evaluation

    give(summary, json, lambda: print_evaluation(summary))


def _require_writable(output: Path) -> None:
    """Raises ValueError now rather than after the measurement."""
    place = output.resolve().parent
    while not place.exists():
        place = place.parent
    if output.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"Cannot write results to {output}: give a file in a writable folder.")
