"""One RLVR run from settings to result: measure the base, train, keep what was trained, measure that."""

from __future__ import annotations

import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from multiticket.train.quiet import hush, hush_loaded

hush()

import torch  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402
from transformers.integrations import TensorBoardCallback  # noqa: E402
from transformers.trainer_callback import PrinterCallback  # noqa: E402

from multiticket import tasks  # noqa: E402
from multiticket.config import RunConfig  # noqa: E402
from multiticket.mask import Mask, MaskRule, masked_candidates  # noqa: E402
from multiticket.sparse import Attachment, attach  # noqa: E402
from multiticket.ticket import Ticket  # noqa: E402
from multiticket.train.evaluation import Evaluation, evaluate  # noqa: E402
from multiticket.train.files import write_json  # noqa: E402
from multiticket.train.metrics import MetricsWriter  # noqa: E402
from multiticket.train.models import load_model  # noqa: E402
from multiticket.train.progress import RunProgress  # noqa: E402
from multiticket.train.run_folder import RunFolder, read_json  # noqa: E402
from multiticket.train.trainer import RLVRTrainer, grpo_config  # noqa: E402


def run_training(
    config: RunConfig, output: Path, resume: bool = False, show_progress: bool = True, verbose: bool = False
) -> dict[str, Any]:
    """Train one arm and measure it; everything it makes lies in `output` (see :class:`RunFolder`).

    The same settings on the same machine give the same ticket, bit for bit, also when the run was
    interrupted and resumed from a checkpoint.

    Args:
        resume: continue the run in `output` from its newest checkpoint, also to more steps than it was started
            for; return its result if it has them all.

    Returns:
        what ``result.json`` holds.

    Raises:
        ValueError: for a user's mistake; nothing is written then.
    """
    if not verbose:
        hush_loaded()
    folder = RunFolder(output)
    task = tasks.get(config.task)
    if resume:
        folder.read_config()
        finished = folder.read_result()
        if finished is not None and finished["steps"] >= config.steps:
            return finished
    else:
        folder.refuse_to_overwrite()

    started = time.monotonic()
    problems = len(task.problems("train"))
    if problems < config.rollouts // config.group:
        raise ValueError(
            f"A step takes {config.rollouts // config.group} problems (rollouts / group) and task {config.task} has "
            f"{problems} to train on: lower rollouts or raise group."
        )
    model, tokenizer = load_model(config.model, config.dtype)
    attachment = attach(model, build_mask(model, config)) if config.arm == "ticket" else None
    numel = sum(parameter.numel() for parameter in masked_candidates(model).values())
    folder.create(config)
    folder.result.unlink(missing_ok=True)  # of fewer steps, if there is one
    name = output.name
    with RunProgress(name, config.steps, show_progress) as progress:
        progress.phase("measuring the base")
        before = _measure_before(config, folder, model, tokenizer, task)
        train_s = _train(config, folder, model, tokenizer, task, attachment, progress, verbose)
        progress.phase("measuring what was trained")
        after, nnz, kept = _keep_and_measure(config, folder, model, tokenizer, task, attachment, before)
    result = {
        "task": config.task,
        "model": config.model,
        "arm": config.arm,
        "method": config.method if config.arm == "ticket" else None,
        "density": config.density,
        "nnz": nnz if nnz is not None else numel,
        "numel": numel,
        "seed": config.seed,
        "part": config.part,
        "training_seed": config.training_seed,
        "learning_rate": config.learning_rate,
        "steps": config.steps,
        "dtype": config.dtype,
        "eval": {"before": before, "after": after.summary()},
        "file": kept.name,
        "file_bytes": _bytes_of(kept),
        "train_s": round(train_s, 3),
        "wall_s": round(time.monotonic() - started, 3),
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
    }
    write_json(folder.result, result)
    return result


def build_mask(model: PreTrainedModel, config: RunConfig) -> Mask:
    """The mask that the settings' rule gives for this model."""
    rule = MaskRule(
        method=config.method,
        density=config.density,
        seed=config.seed,
        part=config.part,
        scope=config.scope,
        options=config.mask_options,
    )
    return Mask.from_rule(model, rule)


def _measure_before(
    config: RunConfig, folder: RunFolder, model: Any, tokenizer: Any, task: Any
) -> dict[str, Any]:
    """The base's scores; read back where an interrupted run has them already."""
    kept = folder.path / "eval-before.json"
    if kept.exists():
        return read_json(kept)
    before = evaluate(model, tokenizer, task, config.eval, config.max_completion_tokens)
    before.save(folder.problems("before"))
    write_json(kept, before.summary())
    return before.summary()


def _train(
    config: RunConfig,
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    task: Any,
    attachment: Attachment | None,
    progress: RunProgress,
    verbose: bool,
) -> float:
    """All of the run's optimiser steps that are missing; seconds of training in all sittings."""
    folder.remove_partial_checkpoints()
    done, checkpoint = folder.last_checkpoint() or (0, None)
    metrics = MetricsWriter(folder.metrics, folder.keep_metrics_until(done), progress)
    tokens = config.max_completion_tokens or task.max_completion_tokens
    trainer = RLVRTrainer(
        model=model,
        reward_funcs=reward_function(task),
        args=grpo_config(config, folder.checkpoints, tokens),
        train_dataset=task.problems("train"),
        processing_class=tokenizer,
        callbacks=[metrics, TensorBoardCallback(_tensorboard(folder.tensorboard))],
        attachment=attachment,
        kl_rollouts=config.kl_rollouts,
    )
    if not verbose:
        trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return metrics.seconds


def _keep_and_measure(
    config: RunConfig,
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    task: Any,
    attachment: Attachment | None,
    before: dict[str, Any],
) -> tuple[Evaluation, int | None, Path]:
    """Write what was trained, read it back onto a freshly loaded base, and measure that."""
    tokens = config.max_completion_tokens
    if attachment is None:
        model.save_pretrained(folder.model)
        tokenizer.save_pretrained(folder.model)
        trained, tokenizer = load_model(str(folder.model), config.dtype)
        after = evaluate(trained, tokenizer, task, config.eval, tokens)
        after.save(folder.problems("after"))
        return after, None, folder.model

    settings = config.model_dump(mode="json", exclude={"eval"})
    attachment.ticket(**settings, versions=versions()).save(folder.ticket)
    attachment.detach(keep=False)
    base, tokenizer = load_model(config.model, config.dtype)
    ticket = Ticket.load(folder.ticket)
    with ticket.applied(base):
        after = evaluate(base, tokenizer, task, config.eval, tokens)
    after.save(folder.problems("after"))
    return after, attachment.mask.nnz, folder.ticket


def reward_function(task: Any) -> Any:
    """The task's score as TRL calls rewards; the share of right answers goes to the log beside it."""

    def reward(
        prompts: Any, completions: list[str], answer: list[str], log_metric: Any, **_: Any
    ) -> list[float]:
        pairs = list(zip(completions, answer, strict=True))
        log_metric("accuracy", sum(bool(task.correct(c, a)) for c, a in pairs) / len(pairs))
        return [float(task.score(c, a)) for c, a in pairs]

    return reward


def _tensorboard(path: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(log_dir=str(path))


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    libraries = ("multiticket", "torch", "transformers", "trl", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def peak_memory() -> int:
    """Bytes: the largest the process (on a GPU: its memory there) has been, libraries included."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
