"""One optimiser step of RLVR after another, by TRL's GRPOTrainer on what an arm trains.

TRL calls these in this order, for every step (`plain_step` is the same in plain PyTorch, without TRL):

    problem_order               which problems
    rollout_func, or generate   completions, a group of each problem (`multi_turn`, `sample`, or TRL's engine)
    reward_funcs                their scores, and the advantage: score minus its group's mean (`rewards`)
    loss, log_probs             the policy gradient of a micro-batch, as often as there are micro-batches
    before_step                 the learning rate, where the first step is to find it
    optimizer.step              AdamW on what trains; an attachment writes its values back when it is done
    after_step                  how far that moved the policy
    step_is_done                what the next step will need of this one's rollouts
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from multiticket.arms.prepared import as_prepared
from multiticket.arms.protocol import Which
from multiticket.generate.products import fast_products
from multiticket.generate.shared_prompts import decode, drawn, shares_prompts
from multiticket.sparse import Attachment
from multiticket.sparse.autograd.fused_head import use_sparse_head
from multiticket.sparse.sharded import gathered, reshard
from multiticket.sparse.support import refuse_strategy
from multiticket.train.allocator import HolesGivenBack
from multiticket.train.callbacks.rounding import MeasureRounding
from multiticket.train.engine_values import engine_as_trained, push_values
from multiticket.train.engine_weights import push_plain_weights
from multiticket.train.flat_groups import in_two_passes, with_gradient
from multiticket.train.group_signal import GroupSignal, first_words
from multiticket.train.noise import trains_with_noise, without_noise
from multiticket.train.probe import FirstStepProbe, any_gradient
from multiticket.train.problem_order import EpochSampler
from multiticket.train.rate import RateController, solve_rate
from multiticket.train.saving import SavingTrainer
from multiticket.train.shared_groups import after_prompts, can_share, prompts_of
from multiticket.train.step_kl import Kept, StepKL, mean
from multiticket.train.trl_compat import SCORES_BY_CALLING


class RLVRTrainer(SavingTrainer):
    """GRPO on a whole model, or on an attachment's values.

    Args:
        attachment: what is trained; None for the whole model.
        kl_rollouts: rollouts on which each step's KL is estimated.
        beta: weight of the KL penalty against the reference policy; the arguments' one must be 0.
        reference: the reference policy: ``base``, or the values at the ``start``.
        rate: decides each step's learning rate (the arguments' one must be 1 then); None: the arguments do.
        tell: told, in a sentence each, what the first rollouts are worth and whether the search for a rate has to wait.
    """

    def __init__(
        self,
        *args: Any,
        attachment: Attachment | None,
        kl_rollouts: int,
        rate: RateController | None = None,
        beta: float = 0.0,
        reference: Which = "base",
        tell: Callable[[str], None] | None = None,
        **kwargs: Any,
    ) -> None:
        self.attachment = attachment
        self.rate = rate
        self.kl_rollouts = kl_rollouts
        self._tell = tell
        self._first_told = self._waits = False
        self._kept: Kept | None = None
        self._rates: list[float] | None = None
        """The optimiser's rates, while a step that has nothing to go by is taken at rate 0."""
        self._chosen: torch.Tensor | None = None
        self._advantages: torch.Tensor | None = None
        use_sparse_head()  # for every arm: on a CPU it scores less of the vocabulary at a time
        self.generating: Callable[[bool], AbstractContextManager[None]] = lambda alone: nullcontext()
        """The block in which rollouts are generated; told whether each rank does so without the others."""
        with engine_as_trained(kwargs["model"], attachment) if kwargs["args"].use_vllm else nullcontext():
            super().__init__(*args, **kwargs)
        self.prepared = as_prepared(self.model, attachment)
        self._noisy = trains_with_noise(self.model, self.args.neftune_noise_alpha)
        if self.use_vllm and attachment is not None and not push_values(self.vllm_generation, attachment):
            push_plain_weights(self.vllm_generation, attachment)
        if beta:
            self.beta = self.args.beta = beta
            self.ref_model = self.prepared.reference(reference)
        if attachment is not None:
            refuse_strategy(self.accelerator)
            self.add_callback(MeasureRounding(self, attachment))
        self.add_callback(_AroundStep(self))

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """All of them, as in the paper: norms and biases are trained and decay like any other tensor."""
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """One that asks the rate controller, where there is one."""
        if self.rate is not None and self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.rate)
        return super().create_scheduler(num_training_steps, optimizer)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's own, with fp32 products by the faster library."""
        with fast_products():
            return super().train(*args, **kwargs)

    # One step

    def completions(self, *asked: Any, **options: Any) -> Any:
        """TRL's own, for this rank's contexts, by a whole model."""
        with nullcontext() if self.use_vllm else gathered(self.model), self.generating(not self.use_vllm):
            return super().completions(*asked, **options)

    def problem_order(self, dataset: Any) -> Any:
        """TRL's order, but with each epoch's permutation a function of its number, so that resuming finds it again."""
        return EpochSampler(
            data_source=dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=True,
            seed=self.args.seed,
        )

    @torch.no_grad()
    def sample(self, contexts: list[list[int]]) -> list[list[int]] | None:
        """Completions of a group in which its prompt is computed once, where the model's cache allows it."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        if not shares_prompts(model):
            return None
        most, training = self.args.max_completion_length, model.training
        uniforms = torch.rand(len(contexts), most, dtype=torch.float64).to(self.accelerator.device)
        model.eval()  # gradient checkpointing keeps no cache
        try:
            with fast_products():
                said, _ = decode(
                    model,
                    contexts,
                    [most] * len(contexts),
                    self.stop_ids,
                    self.processing_class.pad_token_id,
                    drawn(uniforms, self.args.temperature),
                    lambda done, tokens: self.phases.progress(
                        (done + (len(contexts) - done) * tokens / most) / len(contexts)
                    ),
                )
        finally:
            model.train(training)
        return said

    def rewarded(self, rewards: torch.Tensor, truncated: float) -> None:
        """The first of a run's tell whether there is anything to learn from."""
        if self._tell is not None and not self._first_told and self.state.global_step == 0:
            self._first_told = True
            signal = GroupSignal.of(rewards, self.num_generations, truncated)
            self._tell(first_words(signal, self.args.max_completion_length))

    def loss(self, model: Any, batch: dict[str, Any]) -> Any:
        """TRL's own, remembering which tokens of a conversation are the environment's: they are no policy's."""
        self._chosen = batch.get("tool_mask")
        self._advantages = batch["advantages"] if self._only_advantages_count() else None
        try:
            return super().loss(model, batch)
        finally:
            self._advantages = None

    def _only_advantages_count(self) -> bool:
        """Whether a rollout with an advantage of 0 has a gradient of 0, and may be scored by itself."""
        return not (
            self.beta
            or self._noisy
            or self.args.torch_compile
            or self.rewards_entropy
            or self.accelerator.distributed_type.name != "NO"
        )

    def log_probs(self, model: Any, *asked: Any, **options: Any) -> Any:
        """TRL's own, remembering the first rollouts of a training pass for `step_kl`.

        Asked for the reference policy, it answers with this very model, in which that is shown.
        """
        if model is not None and model is self.ref_model:
            with self.ref_model():
                return self._shared_log_probs(self.model, *asked, **options)
        found = self._learning_log_probs(model, *asked, **options)
        if torch.is_grad_enabled() and self.kl_rollouts:
            ids, attention, tokens = asked
            self._kept = Kept.first(self.kl_rollouts, (ids, attention, tokens), found[0], self._chosen)
        return found

    def _learning_log_probs(self, model: Any, ids: Any, attention: Any, tokens: int, **options: Any) -> Any:
        """`_shared_log_probs`, with a graph for those rollouts alone that have a gradient."""
        advantages, self._advantages = self._advantages, None
        learning = None if advantages is None or _asks_for_more(options) else with_gradient(advantages)
        if learning is None or not torch.is_grad_enabled():
            return self._shared_log_probs(model, ids, attention, tokens, **options)
        return in_two_passes(
            lambda rows: self._shared_log_probs(model, ids[rows], attention[rows], tokens, **options),
            learning,
        )

    def _shared_log_probs(
        self, model: Any, ids: Any, attention: Any, tokens: int, batch_size: int | None = None, **options: Any
    ) -> Any:
        """TRL's own, with a group's prompt computed once where that pays."""
        whole = batch_size is None or batch_size >= len(ids)
        alone = SCORES_BY_CALLING and self.accelerator.distributed_type.name == "NO"
        found = None
        if whole and alone and not _asks_for_more(options) and can_share(model):
            found = prompts_of(ids, attention, tokens)
        if found is None:
            return super().log_probs(model, ids, attention, tokens, batch_size=batch_size, **options)
        before = ids.shape[1] - tokens - 1
        with self.accelerator.autocast():
            continued = after_prompts(model, ids[:, :before], attention[:, :before], *found)
        return super().log_probs(continued, ids[:, before:], attention[:, before:], tokens, **options)

    def before_step(self) -> None:
        """All gradients are there, and clipped."""
        if self._kept is not None and self._noisy:
            self._kept = self._kept._replace(log_probs=self._log_probs_now())
        if self.rate is not None and not self.rate.started:
            self.probe_rate()
        if self._nothing_to_step_by():
            self._rates = [group["lr"] for group in self.optimizer.param_groups]
            for group in self.optimizer.param_groups:
                group["lr"] = 0.0

    def _nothing_to_step_by(self) -> bool:
        """Whether weight decay alone would move what trains: no gradient, now or in the optimiser's moments."""
        moves = torch.tensor(float(any_gradient(self.optimizer)), device=self.accelerator.device)
        return not self.accelerator.reduce(moves, reduction="sum")

    def after_step(self) -> None:
        """What trains has moved, and is written back."""
        if self._rates is not None:
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate
            self._rates = None
        if self.beta:
            self.rename_logged("kl", "reference_kl")
        if not self.kl_rollouts:
            return
        kl = self.step_kl()
        self.log_values("kl").append(kl.token)
        self.log_values("kl_per_completion").append(kl.completion)
        if self.rate is not None:
            self.rate.update(kl.completion)

    def step_kl(self) -> StepKL:
        """KL(before || after) of the step just taken, on up to `kl_rollouts` of its own completions.

        Costs one forward pass over these rollouts; two where training passes have noise, see `noise`.
        """
        kl = self._kl_since_gradient()
        self._kept = None
        return kl

    @torch.no_grad()
    def _kl_since_gradient(self) -> StepKL:
        """What `step_kl` says, of the weights as they are now."""
        assert self._kept is not None
        sums = self._kept.sums(self._log_probs_now())
        return mean(self.accelerator.reduce(sums, reduction="sum"))

    @torch.no_grad()
    def _log_probs_now(self) -> torch.Tensor:
        """Of the kept rollouts' tokens, without the noise of a training pass."""
        assert self._kept is not None
        with without_noise(self.model) if self._noisy else nullcontext():
            found: torch.Tensor = self._shared_log_probs(self.model, *self._kept.asked)[0]
        reshard(self.model)  # or zero_grad would miss the gradients of what FSDP2 left whole
        return found

    def probe_rate(self) -> None:
        """Before the first optimiser step with a gradient: the rate at which it moves the target KL."""
        assert self.rate is not None
        if self._nothing_to_step_by():
            self._wait_for_signal()
            return
        probe = FirstStepProbe(self.optimizer, self.prepared.follow)

        def kl_at(rate: float) -> float:
            probe.move(rate)
            return self._kl_since_gradient().completion

        try:
            found = solve_rate(kl_at, self.rate.rate, self.rate.target)
        finally:
            probe.restore()
        if found is not None:
            self.rate.start(found)
            if self._waits and self._tell is not None:
                self._tell(
                    f"learning_rate auto: step {self.state.global_step + 1} has signal, and gave {found:.2g}"
                )
            for group in self.optimizer.param_groups:
                group["lr"] = found
            self.lr_scheduler._last_lr = [found] * len(self.optimizer.param_groups)

    def _wait_for_signal(self) -> None:
        """All groups of the step are flat, so there is no gradient to try rates with."""
        if not self._waits and self._tell is not None:
            step = self.state.global_step + 1
            self._tell(
                f"learning_rate auto waits for a step with signal: all groups of step {step} are without"
            )
        self._waits = True


def _asks_for_more(options: dict[str, Any]) -> bool:
    """Whether log-probabilities are asked for with more than text: images, or a router's loss."""
    return any(value not in (None, False) for name, value in options.items() if name != "compute_entropy")


class _AroundStep(TrainerCallback):
    """Where transformers says that the optimiser steps."""

    def __init__(self, trainer: RLVRTrainer) -> None:
        self.trainer = trainer
        self._holes = HolesGivenBack()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        phases = self.trainer.phases
        with phases.of("kl"):
            self.trainer.before_step()
        phases.begin("step")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        phases = self.trainer.phases
        phases.end()
        with phases.of("kl"):
            self.trainer.after_step()
        for phase, seconds in phases.take().items():
            self.trainer.log_values(f"{phase}_s").append(seconds)
        peaks = phases.take_peaks()
        for phase, peak in peaks.items():
            self.trainer.log_values(f"{phase}_peak_bytes").append(peak)
        if peaks and not torch.cuda.is_available():
            self._holes.after_step(max(peaks.values()))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.step_is_done()
