"""``multiticket eval``: how often a base, a ticket, an adapter or a checkpoint is right."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="A shipped base, a checkpoint folder, or a hub name.")
    ] = None,
    ticket: Annotated[
        Path | None, typer.Option(help="A ticket file, measured on MODEL or the base it names.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A run's checkpoints/step-N folder.")] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A PEFT adapter's folder, measured on MODEL or the base it names.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Default: the ticket's or the run's, else arithmetic.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    problems: Annotated[
        int, typer.Option(help="Problems measured, from the split's beginning; 0: all.")
    ] = 512,
    samples: Annotated[int, typer.Option(help="Sampled completions a problem.")] = 4,
    temperature: Annotated[float, typer.Option(help="Of the sampled completions.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    max_completion_tokens: Annotated[
        int | None, typer.Option(help="Longest completion; default: as trained, or the task's own.")
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(help="Said before every problem; default: as trained, or the task's own.")
    ] = None,
    prompt_template: Annotated[
        str | None, typer.Option(help="Stands around every problem, in the place of {prompt}.")
    ] = None,
    examples: Annotated[
        str | None,
        typer.Option(help="Solved problems before, as turns: a number, or a file of prompts and answers."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Results of single problems; default for a run's: its evals folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Let transformers talk.")] = False,
) -> None:
    """Greedy and sampled accuracy on a fixed set of problems, with 95 % intervals."""
    from multiticket import config

    if sum(given is not None for given in (ticket, checkpoint, adapter)) > 1:
        raise ValueError("Give one of a ticket, an adapter and a checkpoint.")
    if output is not None:
        _require_writable(output)
    asking = {
        "system_prompt": system_prompt,
        "prompt_template": prompt_template,
        "examples": int(examples) if examples is not None and examples.isdigit() else examples,
        "max_completion_tokens": max_completion_tokens,
    }
    asking = {name: value for name, value in asking.items() if value is not None}
    measured = _settings(split, problems, samples, temperature, seed)
    run = config.build({"dtype": dtype, "eval": measured, **asking})
    if task is not None:
        from multiticket import tasks

        tasks.get(task)

    from multiticket.train.trained import Trained, measure, results_file

    trained = Trained(ticket, adapter, checkpoint)
    evaluation, about = measure(run, model, trained, task, verbose)
    if output is None and not asking:  # the file's name does not tell how it was asked otherwise
        output = results_file(trained, about["task"], run.eval)
    if output is not None:
        evaluation.save(output)
        about["results"] = str(output)
    summary = {**about, **evaluation.summary()}
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        from multiticket.research.report.tables import print_evaluation

        print_evaluation(summary)


def _require_writable(output: Path) -> None:
    """Raises ValueError now rather than after the measurement."""
    place = output.resolve().parent
    while not place.exists():
        place = place.parent
    if output.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"Cannot write results to {output}: give a file in a folder that can be written.")


def _settings(split: str, problems: int, samples: int, temperature: float, seed: int) -> dict[str, Any]:
    return {
        "split": split,
        "problems": problems or None,
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
    }
