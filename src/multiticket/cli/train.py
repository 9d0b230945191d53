"""``multiticket train``: one RLVR run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

SETTINGS = (
    "task",
    "model",
    "arm",
    "method",
    "density",
    "seed",
    "part",
    "scope",
    "lora_rank",
    "lora_alpha",
    "beta",
    "reference",
    "training_seed",
    "learning_rate",
    "steps",
    "rollouts",
    "group",
    "micro_batch",
    "dtype",
    "max_completion_tokens",
    "system_prompt",
    "prompt_template",
    "save_every",
    "keep_last",
    "eval_every",
    "samples_every",
    "report_to",
    "stop_on_collapse",
    "from_ticket",
)
MAY_CHANGE = ("steps", "save_every", "keep_last", "report_to", "stop_on_collapse")
"""What a resumed run may be told otherwise than when it started: none changes what it computes."""


def register(app: typer.Typer) -> None:
    app.command("train")(train)


def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings; options here go before it.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help='A name, such as gsm8k or reasoning_gym:chain_sum, or your own "module:task" or '
            '"module:score@data.jsonl".'
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A shipped base, a checkpoint folder, or a hub name.")
    ] = None,
    arm: Annotated[
        str | None, typer.Option(help="full (every parameter), ticket (those of a mask) or lora.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="How the mask chooses positions: random, ...")] = None,
    density: Annotated[
        float | None, typer.Option(help="Trained fraction of every tensor, in (0, 1].")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the mask, and of the training.")] = None,
    part: Annotated[int | None, typer.Option(help="Which disjoint part of the seed's permutation.")] = None,
    scope: Annotated[
        str | None, typer.Option(help="Tensors the mask covers: all, or patterns such as '*mlp*'.")
    ] = None,
    mask_options: Annotated[
        str | None, typer.Option(help='What the method takes, as YAML: "layers: last".')
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Default: what comes nearest to the density.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="LoRA's scale times its rank; default 32.")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of the KL penalty; default 0.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="What the penalty holds on to: base, or start (of the run).")
    ] = None,
    training_seed: Annotated[int | None, typer.Option(help="Seed of the training alone.")] = None,
    learning_rate: Annotated[
        str | None, typer.Option(help="A number, or auto: by each step's KL. Default: 1e-4 / density.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    rollouts: Annotated[int | None, typer.Option(help="Completions a step.")] = None,
    group: Annotated[int | None, typer.Option(help="Completions a problem.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Rollouts in one backward pass.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16: of the weights in training.")
    ] = None,
    max_completion_tokens: Annotated[
        int | None, typer.Option(help="Longest completion; default: the task's own.")
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(help="Said before every problem; '' for none. Default: the task's own.")
    ] = None,
    prompt_template: Annotated[
        str | None, typer.Option(help="Stands around every problem, in the place of {prompt}.")
    ] = None,
    examples: Annotated[
        str | None,
        typer.Option(help="Solved problems before, as turns: a number, or a file of prompts and answers."),
    ] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    keep_last: Annotated[
        int | None, typer.Option(help="Newest checkpoints that are kept, beside the best.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between measurements on validation problems.")
    ] = None,
    samples_every: Annotated[
        int | None, typer.Option(help="Steps between sample completions in the log.")
    ] = None,
    report_to: Annotated[
        str | None, typer.Option(help="wandb, trackio, or both with a comma; TensorBoard always.")
    ] = None,
    stop_on_collapse: Annotated[
        bool | None,
        typer.Option(
            "--stop-on-collapse/--no-stop-on-collapse", help="Stop when KL, length or reward collapse."
        ),
    ] = None,
    from_ticket: Annotated[
        str | None, typer.Option(help="A ticket to go on from: its mask, starting with its values.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Measured split: test, or validation to choose by.")
    ] = None,
    problems: Annotated[int | None, typer.Option(help="Problems of it that are measured.")] = None,
    samples: Annotated[int | None, typer.Option(help="Sampled completions of each.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of TRL's GRPOConfig, as name=value; may be repeated."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and what it needs; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Let TRL and transformers talk.")] = False,
) -> None:
    """Train one arm on a task by GRPO, and measure it before and after."""
    from multiticket import config as settings

    given = context.params
    overrides: dict[str, Any] = {name: given[name] for name in SETTINGS if given[name] is not None}
    if learning_rate is not None:
        overrides["learning_rate"] = _number_or_auto(learning_rate)
    if examples is not None:
        overrides["examples"] = int(examples) if examples.isdigit() else examples
    if mask_options is not None:
        overrides["mask_options"] = _mapping(mask_options)
    measured = {name: given[name] for name in ("split", "problems", "samples") if given[name] is not None}
    if measured:
        overrides["eval"] = measured
    if options:
        overrides["grpo"] = settings.read_options(options)
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


def _number_or_auto(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise ValueError(f"--learning-rate takes a number or auto, not {text!r}.") from None


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


def _mapping(text: str) -> dict[str, Any]:
    import yaml

    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"--mask-options takes 'name: value' pairs, such as 'layers: last', not {text!r}.")
    return options


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
    merged = settings.build({**started.model_dump(), **{k: asked[k] for k in MAY_CHANGE if k in asked}})
    whole = started.model_dump()
    for name, value in asked.items():
        if name in MAY_CHANGE:
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
