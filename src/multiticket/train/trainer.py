"""TRL's GRPOTrainer, told four things: what decays, what to save, in which order problems come, and each step's KL."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import save_fsdp_optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from multiticket.arms.prepared import as_prepared
from multiticket.arms.protocol import Which
from multiticket.arms.values import VALUES_FILE, load_values, save_values
from multiticket.config import RunConfig
from multiticket.runs.checkpoints import Checkpoints
from multiticket.sparse import Attachment
from multiticket.sparse.optimizer_state import load_either_layout
from multiticket.sparse.sharded import reshard
from multiticket.sparse.support import refuse_strategy
from multiticket.train.callbacks.rounding import MeasureRounding
from multiticket.train.engine_values import engine_as_trained, push_values
from multiticket.train.engine_weights import push_plain_weights
from multiticket.train.grpo_options import with_options
from multiticket.train.probe import FirstStepProbe
from multiticket.train.rate import RateController, solve_rate


def grpo_config(config: RunConfig, folder: Path, max_completion_tokens: int) -> GRPOConfig:
    """The paper's recipe in TRL's words.

    One optimiser step on each batch of rollouts makes the importance ratio 1, so that TRL's clipping does
    nothing; ``dapo`` is the token-level mean over the step's rollouts. The run's own `grpo` options go last.

    Raises:
        ValueError: an option that TRL does not have or refuses, or that a setting of the run decides.
    """
    recipe: dict[str, Any] = dict(  # noqa: C408
        output_dir=str(folder),
        loss_type="dapo",
        scale_rewards="none",
        beta=0.0,  # TRL would load a second model by name; RLVRTrainer has its own reference
        num_iterations=1,
        num_generations=config.group,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=_passes(config),
        max_completion_length=max_completion_tokens,
        temperature=config.temperature,
        disable_dropout=True,
        learning_rate=1.0 if config.learning_rate == "auto" else config.learning_rate,  # auto: a factor
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
        report_to=list(config.report_to) or "none",
        project="multiticket",
        run_name=folder.parent.name,
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    chosen = with_options(recipe, config.grpo)
    if config.learning_rate == "auto":
        _refuse_unless_adam(chosen)
    return chosen


def _refuse_unless_adam(chosen: GRPOConfig) -> None:
    optimizer = getattr(chosen.optim, "value", chosen.optim)
    if "adam" not in optimizer:
        raise ValueError(
            f"learning_rate auto tries Adam's first step, and optim is {optimizer}: give a number, or leave optim out."
        )


def _passes(config: RunConfig) -> int:
    """Forward and backward passes of each rank in a step: together the ranks do the step's rollouts."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))  # accelerate does not know yet: its state is made by TRL
    if config.rollouts % (config.micro_batch * ranks):
        raise ValueError(
            f"{config.rollouts} rollouts a step are no whole number of passes for {ranks} ranks with micro_batch "
            f"{config.micro_batch}: give a micro_batch of {config.rollouts // ranks} or a divisor of it."
        )
    return config.rollouts // (config.micro_batch * ranks)


class StepKL(NamedTuple):
    """How far one step moved the policy, in nats: the mean over tokens, and over whole completions."""

    token: float
    completion: float


class RLVRTrainer(GRPOTrainer):
    """GRPO on a whole model, or on an attachment's values.

    Args:
        attachment: what is trained; None for the whole model.
        kl_rollouts: rollouts on which each step's KL is estimated.
        beta: weight of the KL penalty against the reference policy; the arguments' one must be 0.
        reference: the reference policy: ``base``, or the values at the ``start``.
        rate: decides each step's learning rate (the arguments' one must be 1 then); None: the arguments do.
    """

    # transformers declares these more loosely than a trainer with a model has them
    args: Any
    model: Any
    train_dataset: Any
    processing_class: Any
    optimizer: Any
    lr_scheduler: Any
    ref_model: Any
    num_generations: int

    def __init__(
        self,
        *args: Any,
        attachment: Attachment | None,
        kl_rollouts: int,
        rate: RateController | None = None,
        beta: float = 0.0,
        reference: Which = "base",
        **kwargs: Any,
    ) -> None:
        self.attachment = attachment
        self.rate = rate
        self.kl_rollouts = kl_rollouts
        self._measured: dict[str, Any] | None = None
        self._spoken: torch.Tensor | None = None
        self._saving_to: str | None = None
        with engine_as_trained(kwargs["model"], attachment) if kwargs["args"].use_vllm else nullcontext():
            super().__init__(*args, **kwargs)
        self.prepared = as_prepared(self.model, attachment)
        if self.use_vllm and attachment is not None and not push_values(self.vllm_generation, attachment):
            push_plain_weights(self.vllm_generation, attachment)
        if beta:
            self.beta = self.args.beta = beta
            self.ref_model = self.prepared.reference(reference)
        if attachment is not None:
            refuse_strategy(self.accelerator)
            self.add_callback(MeasureRounding(self, attachment))
        self.add_callback(_MeasureKL(self))

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """All of them, as in the paper: norms and biases are trained and decay like any other tensor."""
        return [name for name, _ in model.named_parameters()]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, which also takes up what was saved on a machine of the other kind."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.attachment is not None and not self.is_fsdp_enabled:
            load_either_layout(self.attachment, optimizer)
        return optimizer

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

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's own, remembering which tokens of a conversation are the environment's: they are no policy's."""
        self._spoken = inputs.get("tool_mask")
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's own, remembering the first rollouts of a training pass (they are shuffled) for `step_kl`.

        Asked for the reference policy, it answers with this very model, in which that is shown.
        """
        if model is not None and model is self.ref_model:
            with self.ref_model():
                return super()._get_per_token_logps_and_entropies(self.model, *args, **kwargs)
        input_ids, attention_mask, logits_to_keep = args
        output = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if torch.is_grad_enabled() and self.kl_rollouts:
            first = slice(self.kl_rollouts)
            mask = attention_mask[first, -logits_to_keep:]
            self._measured = {
                "inputs": (input_ids[first], attention_mask[first], logits_to_keep),
                "log_probs": output[0][first].detach(),
                "mask": mask if self._spoken is None else mask * self._spoken[first],
            }
        return output

    @torch.no_grad()
    def step_kl(self) -> StepKL:
        """KL(before || after) of the step just taken.

        Averaged over up to `kl_rollouts` completions of the step's own, or over their tokens, which were
        sampled from the policy before the step: r - 1 - log r with r = p_after / p_before, an unbiased
        estimate that is never negative (Schulman's k3). Costs one forward pass over these rollouts.
        """
        kl = self._kl_since_gradient()
        self._measured = None
        return kl

    @torch.no_grad()
    def _kl_since_gradient(self) -> StepKL:
        """What `step_kl` says, of the weights as they are now."""
        assert self._measured is not None
        inputs, before = self._measured["inputs"], self._measured["log_probs"]
        after, _, _ = super()._get_per_token_logps_and_entropies(self.model, *inputs)
        reshard(self.model)  # or zero_grad would miss the gradients of what FSDP2 left whole
        mask = self._measured["mask"]
        log_ratio = (after - before).float()
        estimate = torch.expm1(log_ratio) - log_ratio
        sums = torch.stack([(estimate * mask).sum(), mask.sum().float(), mask.new_tensor(len(mask)).float()])
        total, tokens, completions = self.accelerator.reduce(sums, reduction="sum").tolist()
        return StepKL(total / max(tokens, 1.0), total / completions)

    # The learning rate, where a controller decides it

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.rate is not None and self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.rate)
        return super().create_scheduler(num_training_steps, optimizer)

    def probe_rate(self) -> None:
        """Before the first optimiser step with a gradient: the rate at which it moves the target KL."""
        assert self.rate is not None
        probe = FirstStepProbe(self.optimizer, self.prepared.follow)
        anything = torch.tensor(float(probe.any_gradient()), device=self.accelerator.device)
        if not self.accelerator.reduce(anything, reduction="sum"):
            return  # all groups of rewards are flat

        def kl_at(rate: float) -> float:
            probe.move(rate)
            return self._kl_since_gradient().completion

        try:
            found = solve_rate(kl_at, self.rate.rate, self.rate.target)
        finally:
            probe.restore()
        if found is not None:
            self.rate.start(found)
            for group in self.optimizer.param_groups:
                group["lr"] = found
            self.lr_scheduler._last_lr = [found] * len(self.optimizer.param_groups)

    # Checkpoints: the values and not the dense model, whole or not there

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a run folder describes itself."""

    def _get_output_dir(self, trial: Any) -> str:
        return self._saving_to or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        checkpoints = Checkpoints(Path(self.args.output_dir))
        partial = checkpoints.partial(step)
        self._saving_to = str(partial)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.finish(step, partial / f"checkpoint-{step}")
        except BaseException:
            checkpoints.give_up(step)
            raise
        finally:
            self._saving_to = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint's values when the trainer saves; a plain Hugging Face checkpoint when a person asks."""
        folder = Path(output_dir or self.args.output_dir)
        if self.attachment is not None and _internal_call:
            state = self.attachment.state_dict()  # every rank, where FSDP2 shards the values
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                save_values(state, folder / VALUES_FILE)
        else:
            gathered = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
            if self.args.should_save:  # gathered by every rank where FSDP shards it, written by one
                self.prepared.save_pretrained(folder, gathered)
                self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Under FSDP the optimiser's shards and the scheduler, without the dense model that transformers would add."""
        if self.attachment is None or not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

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


class _MeasureKL(TrainerCallback):
    """Asks for the KL as soon as the optimiser has stepped, and tells it to what decides the learning rate."""

    def __init__(self, trainer: RLVRTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        rate = self.trainer.rate
        if rate is not None and not rate.started:
            self.trainer.probe_rate()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        metrics = self.trainer._metrics["train"]
        if self.trainer.beta:
            metrics["reference_kl"] += metrics.pop("kl")  # TRL's name for it
        if not self.trainer.kl_rollouts:
            return
        kl = self.trainer.step_kl()
        metrics["kl"].append(kl.token)
        metrics["kl_per_completion"].append(kl.completion)
        if self.trainer.rate is not None:
            self.trainer.rate.update(kl.completion)


class _EpochSampler(RepeatSampler):
    """A RepeatSampler whose permutation depends on seed and epoch, not on how many came before."""

    def set_epoch(self, epoch: int) -> None:
        assert self.seed is not None
        self.generator.manual_seed(self.seed + 1_000_003 * epoch)
