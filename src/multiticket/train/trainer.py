"""TRL's GRPOTrainer, told four things: what decays, what to save, in which order problems come, and each step's KL."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from multiticket.config import RunConfig
from multiticket.sparse import Attachment
from multiticket.sparse.refusals import refuse_strategy
from multiticket.train.rounding import MeasureRounding

VALUES_FILE = "values.safetensors"
_KEY = "multiticket"


def grpo_config(config: RunConfig, folder: Path, max_completion_tokens: int) -> GRPOConfig:
    """The paper's recipe in TRL's words.

    One optimiser step on each batch of rollouts makes the importance ratio 1, so that TRL's clipping does
    nothing; ``dapo`` is the token-level mean over the step's rollouts.
    """
    return GRPOConfig(
        output_dir=str(folder),
        loss_type="dapo",
        scale_rewards="none",
        beta=0.0,
        num_iterations=1,
        num_generations=config.group,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.rollouts // config.micro_batch,
        max_completion_length=max_completion_tokens,
        temperature=config.temperature,
        disable_dropout=True,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip_norm,
        max_steps=config.steps,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 1,
        seed=config.training_seed,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class RLVRTrainer(GRPOTrainer):
    """GRPO on a whole model, or on an attachment's values.

    Args:
        attachment: what is trained; None for the whole model.
        kl_rollouts: rollouts on which each step's KL is estimated.
    """

    # transformers declares these more loosely than a trainer with a model has them
    args: Any
    model: Any
    train_dataset: Any
    processing_class: Any
    num_generations: int

    def __init__(self, *args: Any, attachment: Attachment | None, kl_rollouts: int, **kwargs: Any) -> None:
        self.attachment = attachment
        self.kl_rollouts = kl_rollouts
        self._measured: dict[str, Any] | None = None
        self._saving_to: str | None = None
        super().__init__(*args, **kwargs)
        if attachment is not None:
            refuse_strategy(self.accelerator)
            self.add_callback(MeasureRounding(self, attachment))
        if kl_rollouts:
            self.add_callback(_MeasureKL(self))

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """All of them, as in the paper: norms and biases are trained and decay like any other tensor."""
        return [name for name, _ in model.named_parameters()]

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's order, but with each epoch's permutation a function of its number, so that resuming finds it again."""
        return _EpochSampler(
            data_source=dataset if dataset is not None else self.train_dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=True,
            seed=self.args.seed,
        )

    # Each step's KL

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's own, remembering the first rollouts of a training pass (they are shuffled) for `step_kl`."""
        input_ids, attention_mask, logits_to_keep = args
        output = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if torch.is_grad_enabled() and self.kl_rollouts:
            self._measured = {
                "inputs": (input_ids[: self.kl_rollouts], attention_mask[: self.kl_rollouts], logits_to_keep),
                "log_probs": output[0][: self.kl_rollouts].detach(),
            }
        return output

    @torch.no_grad()
    def step_kl(self) -> float:
        """KL(before || after) of the step just taken, in nats a token.

        Averaged over the completion tokens of up to `kl_rollouts` of the step's own rollouts, which were
        sampled from the policy before the step: r - 1 - log r with r = p_after / p_before, an unbiased
        estimate that is never negative (Schulman's k3). Costs one forward pass over these rollouts.
        """
        assert self._measured is not None
        inputs, before = self._measured["inputs"], self._measured["log_probs"]
        after, _, _ = super()._get_per_token_logps_and_entropies(self.model, *inputs)
        mask = inputs[1][:, -inputs[2] :]
        log_ratio = (after - before).float()
        estimate = torch.expm1(log_ratio) - log_ratio
        sums = torch.stack([(estimate * mask).sum(), mask.sum().float()])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._measured = None
        return total / max(count, 1.0)

    # Checkpoints: the values and not the dense model, whole or not there

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a run folder describes itself."""

    def _get_output_dir(self, trial: Any) -> str:
        return self._saving_to or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        partial = Path(self.args.output_dir) / f"partial-{step}"
        self._saving_to = str(partial)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_to = None
        if self.args.should_save:
            final = Path(self.args.output_dir) / f"step-{step}"
            if final.exists():
                shutil.rmtree(final)
            os.replace(partial / f"checkpoint-{step}", final)
            partial.rmdir()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint's values when the trainer saves; a plain Hugging Face checkpoint when a person asks."""
        folder = Path(output_dir or self.args.output_dir)
        if self.attachment is not None and _internal_call:
            folder.mkdir(parents=True, exist_ok=True)
            save_values(self.attachment, folder / VALUES_FILE)
        else:
            self._save_plain(folder)
            if self.args.should_save:
                self.processing_class.save_pretrained(folder)

    def _save_plain(self, folder: Path) -> None:
        """The model as transformers saves it: gathered by every rank where FSDP shards it, written by one."""
        gathered = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        if self.args.should_save:
            self.model.save_pretrained(folder, state_dict=gathered)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.attachment is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_values(self.attachment, Path(resume_from_checkpoint) / VALUES_FILE)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class _MeasureKL(TrainerCallback):
    """Asks for the KL as soon as the optimiser has stepped."""

    def __init__(self, trainer: RLVRTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._metrics["train"]["kl"].append(self.trainer.step_kl())


class _EpochSampler(RepeatSampler):
    """A RepeatSampler whose permutation depends on seed and epoch, not on how many came before."""

    def set_epoch(self, epoch: int) -> None:
        assert self.seed is not None
        self.generator.manual_seed(self.seed + 1_000_003 * epoch)


def save_values(attachment: Attachment, path: Path) -> None:
    """`attachment.state_dict()` as a safetensors file: values (k,) in fp32 by name, the rest as JSON in the header."""
    state = attachment.state_dict()
    rest = json.dumps({key: value for key, value in state.items() if key != "values"})
    save_file({name: values.cpu() for name, values in state["values"].items()}, path, metadata={_KEY: rest})


def load_values(attachment: Attachment, path: Path) -> None:
    """Put saved values back. Raises ValueError for a file that is missing, broken, or of another mask or base."""
    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads(file.metadata()[_KEY])
            state = {"values": {name: file.get_tensor(name) for name in file.keys()}, **rest}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint of trained values: {error}.") from None
    attachment.load_state_dict(state)
