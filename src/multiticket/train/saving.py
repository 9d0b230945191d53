"""Checkpoints of a trainer: the trained values and not the dense model, whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from transformers.trainer import SCHEDULER_NAME

from multiticket.arms.protocol import Prepared
from multiticket.arms.values import VALUES_FILE, load_values, save_values
from multiticket.runs.checkpoints import Checkpoints
from multiticket.runs.ranks import ALONE, Ranks
from multiticket.sparse import Attachment
from multiticket.sparse.optimizer_state import load_either_layout
from multiticket.train.rate import RateController
from multiticket.train.trl_compat import OpenTrainer


class SavingTrainer(OpenTrainer):
    """A trainer that saves and loads what trains."""

    attachment: Attachment | None
    prepared: Prepared
    rate: RateController | None
    ranks: Ranks = ALONE
    """Of a run; what goes wrong in saving on one then goes wrong on all."""
    _saving_to: str | None = None
    _after_last_step: dict[str, Any] | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, which also takes up what was saved on a machine of the other kind."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.attachment is not None and not self.is_fsdp_enabled:
            load_either_layout(self.attachment, optimizer)
        return optimizer

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a run folder describes itself."""

    def _get_output_dir(self, trial: Any) -> str:
        return self._saving_to or super()._get_output_dir(trial)

    def save_checkpoint(self) -> None:
        """A checkpoint of the last step, at once."""
        self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        checkpoints = Checkpoints(Path(self.args.output_dir))
        partial = checkpoints.partial(step)
        self._saving_to = str(partial)
        try:
            with self.ranks.together():
                super()._save_checkpoint(model, trial)
                if self._after_last_step is not None:
                    torch.save(self._after_last_step, self._in_hand_file(partial / f"checkpoint-{step}"))
            self.accelerator.wait_for_everyone()
            with self.ranks.together():
                if self.args.should_save:
                    checkpoints.finish(step, partial / f"checkpoint-{step}")
        except BaseException:
            if self.args.should_save:
                checkpoints.give_up(step)
            raise
        finally:
            self._saving_to = None

    def step_is_done(self) -> None:
        """From here until the next step is done, a checkpoint holds what is in hand now: that one may be given up."""
        self._after_last_step = self.in_hand()

    def _in_hand_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"in-hand-{self.args.process_index}.pt"

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = self._in_hand_file(Path(checkpoint))
        if file.exists():
            self.take_in_hand(torch.load(file, map_location=self.args.device, weights_only=True))
            self.step_is_done()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint's values when the trainer saves; a plain Hugging Face checkpoint when a person asks."""
        folder = Path(output_dir or self.args.output_dir)
        if self.attachment is not None and _internal_call:
            state = self.attachment.state_dict()  # every rank, where FSDP2 shards the values
            with self.ranks.together():
                if self.args.should_save:
                    folder.mkdir(parents=True, exist_ok=True)
                    save_values(state, folder / VALUES_FILE)
        else:
            gathered = self.whole_weights()
            with self.ranks.together():
                if self.args.should_save:  # gathered by every rank where FSDP shards it, written by one
                    self.prepared.save_pretrained(folder, gathered)
                    self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Under FSDP the optimiser's shards and the scheduler, without the dense model that transformers would add."""
        if self.attachment is None or not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        self.ranks.agree()  # what was written before this collective was written well
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def whole_weights(self) -> dict[str, Any] | None:
        """All weights by name, tied ones once, on the first rank, where FSDP shards the model. Collective."""
        if not self.is_fsdp_enabled:
            return None
        gathered: dict[str, Any] = self.accelerator.get_state_dict(self.model)
        once = {name for name, _ in self.model.named_parameters()}
        tied = {name for name, _ in self.model.named_parameters(remove_duplicate=False)} - once
        return {name: tensor for name, tensor in gathered.items() if name not in tied}

    def go_back_to(self, checkpoint: Path) -> None:
        """Put a checkpoint's values, or its whole model, in the place of those now."""
        self._load_from_checkpoint(str(checkpoint), self.model)
        if self.rate is not None:
            scheduler = torch.load(checkpoint / "scheduler.pt", weights_only=True)
            vars(self.rate).update(scheduler["lr_lambdas"][0])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.attachment is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_values(self.attachment, Path(resume_from_checkpoint) / VALUES_FILE)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)
