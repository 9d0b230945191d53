"""Training in one process: from the newest checkpoint on, watched, until it is done, collapses or is told to stop."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from multiticket.evaluate.validation import Validation, best_step
from multiticket.runs.ranks import StopNow
from multiticket.runs.trackers import tensorboard
from multiticket.sparse.sharded import gathered
from multiticket.train.callbacks.interrupt import StopAtStep, StopSignals
from multiticket.train.callbacks.metrics import MetricsWriter
from multiticket.train.callbacks.on_first import OnFirst
from multiticket.train.callbacks.samples import SampleWriter
from multiticket.train.collapse import Collapse, collapse, suspect_since
from multiticket.train.evaluations import evaluate_held_out
from multiticket.train.multi_turn import rollout_function
from multiticket.train.recipe import grpo_config
from multiticket.train.rewards import reward_function
from multiticket.train.setup import Setup
from multiticket.train.strategy import check_checkpoint
from multiticket.train.trainer import RLVRTrainer


class Session:
    """One process's part of a run. It puts the folder back to the newest checkpoint, where the trainer takes over."""

    def __init__(self, run: Setup, signals: StopSignals, verbose: bool) -> None:
        self.run = run
        self.config = run.config
        self.folder = run.folder
        self.ranks = run.ranks
        self.signals = signals
        self.stop = StopAtStep(signals)
        self.done = self.ranks.by_first(self._put_back)
        self.metrics = MetricsWriter(self.folder.steps, run.progress, self.ranks)
        self.trainer = _trainer(run, self.metrics)
        self.trainer.ranks = self.ranks
        self.trainer.generating = signals.generating
        self.trainer.phases.tell = run.progress.within_step
        if not verbose:
            self.trainer.remove_callback(PrinterCallback)
        self.watch()

    def _put_back(self) -> int | None:
        done = self.folder.checkpoints.last()
        if done is not None:
            note = check_checkpoint(self.folder.checkpoints.of(done), self.ranks.size, self.run.strategy)
            if note is not None:
                self.run.progress.note(note)
        self.folder.go_back_to(done or 0)
        return done

    @property
    def seconds(self) -> float:
        """Of training so far, in all sessions."""
        return self.metrics.seconds

    @property
    def seconds_before(self) -> float:
        """Of training in the sessions before this one; what else they took, nobody counted."""
        return self.metrics.seconds_before

    def watch(self) -> None:
        """Everything that looks at a step when it is done, in the order in which it does."""
        config, folder, trainer = self.config, self.folder, self.trainer
        if config.eval_every:
            trainer.add_callback(
                Validation(config.eval_every, folder.evaluations, self._held_out, self.ranks)
            )
        if config.samples_every:
            trainer.add_callback(SampleWriter(trainer, config.samples_every, folder.samples, self.ranks))
        if config.stop_on_collapse:
            trainer.add_callback(_StopOnCollapse(self))
        trainer.add_callback(_Prune(self))
        trainer.add_callback(OnFirst(self.ranks, partial(tensorboard, folder.tensorboard, self.done or 0)))
        trainer.add_callback(self.stop)

    def _held_out(self) -> dict[str, Any] | None:
        """Scores on validation problems; None where a signal stopped that."""
        try:
            with gathered(self.run.prepared.model), self.signals.measuring():
                return evaluate_held_out(self.run)
        except StopNow as stop:
            self.signals.take(stop)
            return None

    def train(self) -> Collapse | None:
        """Take the steps that are missing; what ended them early, if it was a collapse."""
        done = self.done
        checkpoint = self.folder.checkpoints.of(done) if done is not None else None
        if self.collapsed() is None and (done or 0) < self.config.steps:
            try:
                self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except StopNow as stop:
                self.signals.take(stop)
                self._save_last_step()
        elif checkpoint is not None:
            self.trainer.go_back_to(checkpoint)
        self.prune()  # what a kill after the last save left over
        return self.collapsed()

    def _save_last_step(self) -> None:
        """A step was given up: nothing has changed since the last one but what was drawn at random."""
        step = self.trainer.state.global_step
        if step and step not in self.ranks.by_first(self.folder.checkpoints.steps):
            self.stop.random_as_after_the_step()
            self.trainer.save_checkpoint()
        self.signals.stopped_at = step

    def collapsed(self) -> Collapse | None:
        return collapse(self.metrics.lines, self.config.collapse) if self.config.stop_on_collapse else None

    def back_to_before(self, collapsed: Collapse) -> dict[str, Any]:
        """Load the newest checkpoint from before the collapse began, where there is one; what to report of it."""
        good = self.ranks.by_first(lambda: self.folder.checkpoints.last(before=collapsed.since))
        if good is not None:
            self.trainer.go_back_to(self.folder.checkpoints.of(good))
        kept = good if good is not None else collapsed.step
        return {
            "step": collapsed.step,
            "since": collapsed.since,
            "reason": collapsed.reason,
            "kept_step": kept,
        }

    def prune(self) -> None:
        """Keep the checkpoints that the settings say, and what a beginning collapse would be undone with."""
        self.ranks.by_first(self._prune)

    def _prune(self) -> None:
        self.folder.checkpoints.prune(
            self.config.keep_last,
            best_step(self.folder.evaluations.read()),
            suspect_since(self.metrics.lines, self.config.collapse),
        )


def _trainer(run: Setup, metrics: MetricsWriter) -> RLVRTrainer:
    return RLVRTrainer(
        model=run.prepared.model,
        reward_funcs=reward_function(run.task, run.ranks),
        args=grpo_config(run.config, run.folder.checkpoints.path, run.tokens),
        train_dataset=run.problems,
        processing_class=run.tokenizer,
        callbacks=[metrics],
        attachment=run.prepared.attachment,
        kl_rollouts=run.config.kl_rollouts,
        rate=run.rate,
        beta=run.config.beta,
        reference=run.config.reference,
        rollout_func=rollout_function(run.task, run.problems),
        tell=run.progress.note,
    )


class _StopOnCollapse(TrainerCallback):
    def __init__(self, session: Session) -> None:
        self.session = session

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.session.collapsed() is not None:
            control.should_training_stop = True


class _Prune(TrainerCallback):
    def __init__(self, session: Session) -> None:
        self.session = session

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.session.prune()
