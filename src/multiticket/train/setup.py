"""Make ready what a run works with: its problems, the loaded model, and what of it trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from multiticket import arms, tasks
from multiticket.arms.protocol import Arm, Prepared
from multiticket.bases import dequantised_from
from multiticket.config import RunConfig
from multiticket.generate.prompts import prompt_texts, refuse_too_long, rendered
from multiticket.mask.names import candidate_shapes
from multiticket.mask.quantised import is_quantised_model
from multiticket.models import load_model
from multiticket.runs.folder import RunFolder
from multiticket.runs.progress import RunProgress
from multiticket.runs.ranks import Ranks
from multiticket.runs.trackers import check_installed
from multiticket.tasks.judging import rows
from multiticket.tasks.tools import toolbox_of
from multiticket.train.rate import RateController
from multiticket.train.recipe import grpo_config
from multiticket.train.strategy import FSDP2, strategy_of


@dataclass(frozen=True)
class Setup:
    """What every stage of a run works with."""

    config: RunConfig
    folder: RunFolder
    progress: RunProgress
    task: Any
    tokenizer: Any
    problems: Any
    """A dataset of the problems to train on, their prompts rendered."""
    tokens: int
    """Of a completion, at most."""
    arm: Arm
    prepared: Prepared
    """The model, ready to train."""
    numel: int
    """Number of parameters of the model."""
    rate: RateController | None
    """Where the learning rate is found in training."""
    ranks: Ranks
    """The processes that share the run."""
    strategy: str | None
    """How they share the training: ``ddp`` or ``fsdp2``; None for one process."""

    @property
    def learning_rate(self) -> float | None:
        """The rate that was asked for or found; None where it was to be found, and no step had signal."""
        if self.rate is None:
            return float(self.config.learning_rate)
        return self.rate.rate if self.rate.started else None


def set_up(config: RunConfig, folder: RunFolder, task: Any, progress: RunProgress, ranks: Ranks) -> Setup:
    """Check the settings, load the model, and have its arm prepare it; nothing is written.

    Raises:
        ValueError: for settings that do not fit the task, the model, or what is installed.
    """
    refuse_early(config, folder, task)
    strategy = strategy_of(ranks, config, progress.note)
    model, tokenizer = load_model(config.model, config.dtype)
    origin = dequantised_from(config.model)
    if origin is not None:
        progress.note(
            f"{origin['file']} is quantised: what trains, and what a ticket is bound to, are its dequantised values"
        )
    task = tasks.asked(task, tokenizer, config.asking)
    problems = rendered(task.problems("train"), tokenizer, task)
    tokens = most_tokens(config, task)
    long = refuse_too_long(problems["prompt"], tokenizer, model, "train", tokens)
    if long is not None:
        progress.note(long)
    for split in {config.eval.split, "validation" if config.eval_every else config.eval.split}:
        measured = task.problems(split)["prompt"][: config.eval.problems]
        refuse_too_long(prompt_texts(measured, tokenizer, task), tokenizer, model, split, tokens)
    box = toolbox_of(task)
    if box is not None:
        box.open(rows(task.problems("train").select([0])))  # an environment that cannot begin is found here
    numel = sum(math.prod(shape) for shape in candidate_shapes(model).values())
    if strategy == FSDP2 and is_quantised_model(model):
        raise ValueError("FSDP2 does not shard a quantised base: set accelerate to plain data parallelism.")
    arm = arms.get(config.arm)
    prepared = arm.prepare(model, tokenizer, config)
    if prepared.attachment is None:  # what it trains is saved with its tokenizer
        _see_that_it_can_be_saved(tokenizer)
    _check_same_for_all(prepared, ranks)
    for note in tasks.before_a_run(task, config.eval.split, config.eval.problems):
        progress.note(note)
    rate = _rate_controller(config, prepared.typical_weight)
    return Setup(
        config=config,
        folder=folder,
        progress=progress,
        task=task,
        tokenizer=tokenizer,
        problems=problems,
        tokens=tokens,
        arm=arm,
        prepared=prepared,
        numel=numel,
        rate=rate,
        ranks=ranks,
        strategy=strategy,
    )


def _see_that_it_can_be_saved(tokenizer: Any) -> None:
    """Raises ValueError now, and not when the model that it belongs to has been trained."""
    try:
        with TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
    except Exception as error:
        raise ValueError(f"The tokenizer cannot be saved beside the trained model: {error}") from error


def refuse_early(config: RunConfig, folder: RunFolder, task: Any) -> None:
    """Raises ValueError for what can be refused before a model is loaded."""
    options = grpo_config(config, folder.checkpoints.path, most_tokens(config, task))
    available, needed = len(task.problems("train")), config.rollouts // config.group
    if available < needed:
        raise ValueError(
            f"A step takes {needed} problems (rollouts / group) and task {config.task} has {available} "
            "to train on: lower rollouts or raise group."
        )
    at_once = (options.generation_batch_size or 0) // config.group
    if available < at_once:
        raise ValueError(
            f"Completions of {at_once} problems are generated at once (steps_per_generation x micro_batch / group) and "
            f"task {config.task} has {available} to train on: lower steps_per_generation."
        )
    if config.eval_every and not len(task.problems("validation")):
        raise ValueError(f"Task {config.task} has no validation problems for eval_every: omit it.")
    check_installed(config.report_to)


def _check_same_for_all(prepared: Prepared, ranks: Ranks) -> None:
    """Raises ValueError where the processes would train other positions, or other weights. Collective."""
    attachment = prepared.attachment
    if len(set(ranks.gather(attachment.base_fingerprint if attachment is not None else None))) > 1:
        raise ValueError(
            "The processes do not have the same weights at the same positions: see that all load one model, and take "
            "a mask's method that chooses alike on all of them."
        )


def most_tokens(config: RunConfig, task: Any) -> int:
    """Of a completion."""
    return int(config.max_completion_tokens or task.max_completion_tokens)


def _rate_controller(config: RunConfig, typical_weight: Callable[[], float | None]) -> RateController | None:
    if config.learning_rate != "auto":
        return None
    return RateController(
        config.target_kl_per_completion, config.rate_control, config.usual_rate, typical_weight()
    )
