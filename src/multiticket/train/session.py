"""One sitting of a run: from the newest checkpoint on, watched, until it is done, collapses or is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from multiticket.config import RunConfig
from multiticket.evaluate.validation import Validation, best_step
from multiticket.runs.folder import RunFolder
from multiticket.runs.progress import RunProgress
from multiticket.runs.trackers import tensorboard
from multiticket.train.callbacks.interrupt import StopAtStep, StopNow, StopSignals
from multiticket.train.callbacks.metrics import MetricsWriter
from multiticket.train.callbacks.samples import SampleWriter
from multiticket.train.collapse import Collapse, collapse, suspect_since
from multiticket.train.trainer import RLVRTrainer


class Sitting:
    """Puts the folder back to the newest checkpoint, where the trainer takes over."""

    def __init__(self, config: RunConfig, folder: RunFolder, progress: RunProgress) -> None:
        self.config = config
        self.folder = folder
        self.done = folder.checkpoints.last()
        folder.go_back_to(self.done or 0)
        self.metrics = MetricsWriter(folder.steps, progress)

    @property
    def seconds(self) -> float:
        """Of training so far, in all sittings."""
        return self.metrics.seconds

    def watch(
        self, trainer: RLVRTrainer, measure: Callable[[], dict[str, Any]], signals: StopSignals
    ) -> None:
        """Everything that looks at a step when it is done, in the order in which it does."""
        config, folder = self.config, self.folder
        self.signals = signals
        self.stop = StopAtStep(signals)

        def unless_stopped() -> dict[str, Any] | None:
            try:
                with signals.measuring():
                    return measure()
            except StopNow:
                return None

        if config.eval_every:
            trainer.add_callback(Validation(config.eval_every, folder.evaluations, unless_stopped))
        if config.samples_every:
            trainer.add_callback(SampleWriter(trainer, config.samples_every, folder.samples))
        if config.stop_on_collapse:
            trainer.add_callback(_StopOnCollapse(self))
        trainer.add_callback(_Prune(self))
        trainer.add_callback(tensorboard(folder.tensorboard, self.done or 0))
        trainer.add_callback(self.stop)

    def go_on(self, trainer: RLVRTrainer) -> Collapse | None:
        """Take the steps that are missing; what ended them early, if it was a collapse."""
        done = self.done
        checkpoint = self.folder.checkpoints.of(done) if done is not None else None
        if self.collapsed() is None and (done or 0) < self.config.steps:
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except StopNow:
                self._save_last_step(trainer)
        elif checkpoint is not None:
            trainer.go_back_to(checkpoint)
        self.prune()  # what a kill after the last save left over
        return self.collapsed()

    def _save_last_step(self, trainer: RLVRTrainer) -> None:
        """A step was given up: nothing has changed since the last one but what was drawn at random."""
        step = trainer.state.global_step
        if step and step not in self.folder.checkpoints.steps():
            self.stop.random_as_after_the_step()
            trainer.save_checkpoint()
        self.signals.stopped_at = step

    def collapsed(self) -> Collapse | None:
        return collapse(self.metrics.lines, self.config.collapse) if self.config.stop_on_collapse else None

    def back_to_before(self, collapsed: Collapse, trainer: RLVRTrainer) -> dict[str, Any]:
        """Load the newest checkpoint from before the collapse began, where there is one; what to report of it."""
        good = self.folder.checkpoints.last(before=collapsed.since)
        if good is not None:
            trainer.go_back_to(self.folder.checkpoints.of(good))
        kept = good if good is not None else collapsed.step
        return {
            "step": collapsed.step,
            "since": collapsed.since,
            "reason": collapsed.reason,
            "kept_step": kept,
        }

    def prune(self) -> None:
        """Keep the checkpoints that the settings say, and what a beginning collapse would be undone with."""
        self.folder.checkpoints.prune(
            self.config.keep_last,
            best_step(self.folder.evaluations.read()),
            suspect_since(self.metrics.lines, self.config.collapse),
        )


class _StopOnCollapse(TrainerCallback):
    def __init__(self, sitting: Sitting) -> None:
        self.sitting = sitting

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.sitting.collapsed() is not None:
            control.should_training_stop = True


class _Prune(TrainerCallback):
    def __init__(self, sitting: Sitting) -> None:
        self.sitting = sitting

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.sitting.prune()
