"""One RLVR run from settings to result: measure the base, train, keep what was trained, measure that."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback

from multiticket import arms, tasks
from multiticket.config import WATCHING, EvalConfig, RunConfig
from multiticket.evaluate.evaluation import Evaluation, evaluate
from multiticket.evaluate.validation import best_step
from multiticket.generate.prompts import rendered
from multiticket.mask.names import candidate_shapes
from multiticket.models import load_model, name_and_revision
from multiticket.runs.disk import explained
from multiticket.runs.files import write_json
from multiticket.runs.folder import RunFolder, read_json
from multiticket.runs.progress import RunProgress
from multiticket.runs.trackers import check_installed
from multiticket.runs.versions import versions
from multiticket.tasks.score_function import ScoreFails
from multiticket.train.allocator import keep_freed_memory
from multiticket.train.callbacks.interrupt import RunInterrupted, StopNow, StopSignals
from multiticket.train.multi_turn import rollout_function
from multiticket.train.rate import RateController
from multiticket.train.recipe import grpo_config
from multiticket.train.rewards import reward_function
from multiticket.train.session import Sitting
from multiticket.train.trainer import RLVRTrainer


def run_training(
    config: RunConfig,
    output: Path,
    resume: bool = False,
    show_progress: bool = True,
    verbose: bool = False,
    measured: dict[str, Evaluation] | None = None,
) -> dict[str, Any]:
    """Train one arm and measure it; everything it makes lies in `output` (see :class:`RunFolder`).

    The same settings on the same machine give the same ticket, bit for bit, also when the run was
    interrupted and resumed from a checkpoint.

    Args:
        resume: continue the run in `output` from its newest checkpoint, also to more steps than it was started
            for; return its result if it has them all.
        measured: what bases of earlier runs came to, by what decides it; a base found here is not measured again, and
            one that is not is added. For runs that follow one another while their bases stay as they are.

    Returns:
        what ``result.json`` holds. A run that collapsed has ``stopped`` in it, and keeps what it had learned before.

    Raises:
        ValueError: for a user's mistake; nothing is written then. Also where the disk does not take what is to be
            written; the run can be resumed then.
        RunInterrupted: SIGTERM or SIGINT came while it trained; a checkpoint of the last step was saved.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "A run folder is written by one process, and this is one of several: for several GPUs give the attached "
            "model to RLVRTrainer (or TRL's GRPOTrainer) in a script of your own."
        )
    folder = RunFolder(output)
    task = tasks.get(config.task)
    if resume:
        folder.read_config()
        finished = folder.read_result()
        if finished is not None and finished.get("stopped") and config.stop_on_collapse:
            raise ValueError(
                f"The run in {output} stopped at step {finished['stopped']['step']} because "
                f"{finished['stopped']['reason']}: start another with a lower learning rate, or go on all the same "
                "with --no-stop-on-collapse."
            )
        if finished is not None and finished["steps"] >= config.steps and not finished.get("stopped"):
            return finished
    else:
        folder.refuse_to_overwrite()

    keep_freed_memory()
    started = time.monotonic()
    with RunProgress(output.name, config.steps, show_progress) as progress:
        run = _Run(config, folder, task, progress, verbose, {} if measured is None else measured)
        folder.create(config)
        with explained(folder), StopSignals() as signals:
            try:
                return _from_start_to_result(run, signals, resume, started)
            except StopNow:
                raise RunInterrupted(signals.received or signal.SIGINT, None, output) from None


def _from_start_to_result(run: _Run, signals: StopSignals, resume: bool, started: float) -> dict[str, Any]:
    """The four stages of a run. What was trained is on the disk before anything else is done with it."""
    folder = run.folder
    folder.result.unlink(missing_ok=True)  # of fewer steps, if there is one
    try:
        with signals.measuring():
            before = run.measure_start()
    except ScoreFails:
        if not resume:
            folder.take_back()
        raise
    trained = folder.read_trained(run.config) if resume else None
    if trained is None:
        trained = run.train(signals)
        write_json(folder.trained, trained)
    folder.remove_half_written()
    with signals.measuring():
        after = run.measure_kept()
    result = _result(run, before, after, trained, started)
    write_json(folder.result, result)
    folder.trained.unlink()
    return result


def _result(
    run: _Run, before: dict[str, Any], after: dict[str, Any], trained: dict[str, Any], started: float
) -> dict[str, Any]:
    config = run.config
    kept = run.folder.path / trained["file"]
    return {
        **{name: getattr(config, name) for name in ("task", "model", "arm", "density", "seed", "part")},
        **{name: getattr(config, name) for name in ("training_seed", "steps", "dtype")},
        "learning_rate": trained["learning_rate"],
        "learning_rate_asked": config.learning_rate,
        **run.prepared.about(config, run.numel),
        "nnz": run.prepared.nnz,
        "numel": run.numel,
        "eval": {"before": before, "after": after},
        "best_step": best_step(run.folder.evaluations.read()),
        "stopped": trained["stopped"],
        "file": kept.name,
        "file_bytes": bytes_of(kept),
        "train_s": round(trained["train_s"], 3),
        "wall_s": round(trained["earlier_s"] + time.monotonic() - started, 3),
        "peak_memory_bytes": peak_memory(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions(run.arm.packages),
    }


class _Run:
    """A run under way: the loaded model, what of it is trained, and where things go."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        task: Any,
        progress: RunProgress,
        verbose: bool,
        measured: dict[str, Evaluation],
    ) -> None:
        self.config = config
        self.folder = folder
        self.task = task
        self.progress = progress
        self.verbose = verbose
        self.measured = measured
        self.tokens = config.max_completion_tokens or task.max_completion_tokens
        grpo_config(
            config, folder.checkpoints.path, self.tokens
        )  # refuses TRL options before a model is loaded
        self.problems = task.problems("train")
        needed = config.rollouts // config.group
        if len(self.problems) < needed:
            raise ValueError(
                f"A step takes {needed} problems (rollouts / group) and task {config.task} has {len(self.problems)} "
                "to train on: lower rollouts or raise group."
            )
        if config.eval_every and not len(task.problems("validation")):
            raise ValueError(f"Task {config.task} has no validation problems for eval_every: leave it out.")
        check_installed(config.report_to)
        model: Any
        model, self.tokenizer = load_model(config.model, config.dtype)
        self.task = task = tasks.asked(task, self.tokenizer, config.asking)
        self.tokens = config.max_completion_tokens or task.max_completion_tokens
        self.problems = rendered(task.problems("train"), self.tokenizer, task)
        for note in task.notes() if hasattr(task, "notes") else ():
            progress.note(note)
        self.numel = sum(math.prod(shape) for shape in candidate_shapes(model).values())
        self.arm = arms.get(config.arm)
        self.prepared = self.arm.prepare(model, self.tokenizer, config)
        self.rate: RateController | None = None
        if config.learning_rate == "auto":
            weight = self.prepared.typical_weight()
            self.rate = RateController(
                config.target_kl_per_completion, config.rate_control, config.usual_rate, weight
            )

    @property
    def learning_rate(self) -> float:
        """The rate that was asked for, or the one that was found."""
        return self.rate.rate if self.rate is not None else float(self.config.learning_rate)

    def measure_start(self) -> dict[str, Any]:
        """The scores of the base, or the ticket gone on from; read back where an interrupted run has them already."""
        kept = self.folder.path / "eval-before.json"
        if not kept.exists():
            trained = self.prepared.starts_trained
            self.progress.phase("measuring the ticket" if trained else "measuring the base")
            shared = {} if trained else self.measured
            decides = self.config.model_dump(mode="json", include={"model", "dtype", "task", "eval"})
            key = f"{json.dumps(decides)} {self.tokens} {self.config.asking}"
            if key not in shared:
                shared[key] = self._evaluate(self.prepared.model, self.config.eval)
            shared[key].save(self.folder.problems("before"))
            write_json(kept, shared[key].summary())
        return read_json(kept)

    def train(self, signals: StopSignals) -> dict[str, Any]:
        """Take all steps that are missing and keep what was trained; what is to be told of that.

        ``train_s`` are seconds of training in all sittings, ``earlier_s`` those before this one, of which nobody
        counted more than the training.
        """
        sitting = Sitting(self.config, self.folder, self.progress)
        trainer = self._trainer(sitting)
        sitting.watch(trainer, self._measure_held_out, signals)
        collapsed = sitting.go_on(trainer)
        signals.follow(self.folder.path)
        stopped = sitting.back_to_before(collapsed, trainer) if collapsed is not None else None
        kept = self.keep(stopped)
        return {
            "steps": self.config.steps,
            "file": kept.name,
            "learning_rate": self.learning_rate,
            "stopped": stopped,
            "train_s": sitting.seconds,
            "earlier_s": sitting.metrics.seconds_before,
        }

    def _trainer(self, sitting: Sitting) -> RLVRTrainer:
        trainer = RLVRTrainer(
            model=self.prepared.model,
            reward_funcs=reward_function(self.task),
            args=grpo_config(self.config, self.folder.checkpoints.path, self.tokens),
            train_dataset=self.problems,
            processing_class=self.tokenizer,
            callbacks=[sitting.metrics],
            attachment=self.prepared.attachment,
            kl_rollouts=self.config.kl_rollouts,
            rate=self.rate,
            beta=self.config.beta,
            reference=self.config.reference,
            rollout_func=rollout_function(self.task, self.problems),
        )
        if not self.verbose:
            trainer.remove_callback(PrinterCallback)
        return trainer

    def _measure_held_out(self) -> dict[str, Any]:
        settings = self.config.eval.model_copy(update={"split": "validation"})
        with self.progress.aside("measuring on validation problems"):
            return self._evaluate(self.prepared.model, settings).summary()

    def _evaluate(self, model: Any, settings: EvalConfig) -> Evaluation:
        return evaluate(model, self.tokenizer, self.task, settings, self.tokens, self.progress.completions)

    def keep(self, stopped: dict[str, Any] | None) -> Path:
        """Write what was trained: a ticket, an adapter, or the whole model as a plain checkpoint."""
        settings = self.config.model_dump(mode="json", exclude={*WATCHING})
        settings["learning_rate"] = self.learning_rate
        settings["model"], revision = name_and_revision(self.config.model, self.prepared.model)
        settings |= {"revision": revision} if revision is not None else {}
        if stopped is not None:
            settings |= {"steps": stopped["kept_step"], "stopped": stopped}
        return self.prepared.keep(self.folder, self.tokenizer, settings | {"versions": versions()})

    def measure_kept(self) -> dict[str, Any]:
        """The scores of what was written, read back: a whole model, or a ticket or an adapter on a fresh base."""
        self.progress.phase("measuring what was trained")
        place = self.folder.path / self.arm.kept
        model, tokenizer = self.arm.read(place, self.config)
        tell = self.progress.completions
        evaluation = evaluate(model, tokenizer, self.task, self.config.eval, self.tokens, tell)
        evaluation.save(self.folder.problems("after"))
        after = evaluation.summary()
        self.arm.note_scores(place, {"before": self.measure_start(), "after": after})
        return after


def peak_memory() -> int:
    """Bytes: the largest the process (on a GPU: its memory there) has been, libraries included."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
