"""Everything of TRL that it does not promise to keep, in one place, and the versions that the tests were run with.

TRL's names with an underscore are reached from here alone, and so are its modules that are no part of its manual.
``make test-trl VERSION=1.14.0`` runs the trainer's tests with another version than the installed one.
"""

from __future__ import annotations

import functools
import json
from collections import deque
from importlib.metadata import version
from typing import Any

from multiticket.generate.head import contiguous_head
from multiticket.generate.prompts import positions_of
from multiticket.train.phases import Phases

SERIES = ("1.14", "1.16")
"""Versions that pass the trainer's tests; each stands for its patches. 1.13 has another protocol with vLLM, and 1.15
starts a Triton kernel on machines without a GPU."""
READ_IN = {
    "GRPOTrainer._compute_loss": "1.16.0",
    "GRPOTrainer._get_per_token_logps_and_entropies": "1.16.0",
    "GRPOTrainer._generate_single_turn": "1.16.0",
    "GRPOTrainer._generate": "1.16.0",
    "GRPOTrainer._calculate_rewards": "1.16.0",
    "GRPOTrainer._get_train_sampler": "1.16.0",
    "GRPOTrainer._metrics": "1.16.0",
    "GRPOTrainer._logs": "1.16.0",
    "GRPOTrainer._step": "1.16.0",
    "GRPOTrainer._buffered_inputs": "1.16.0",
    "GRPOTrainer._generate_and_score_completions": "1.16.0",
    "GRPOTrainer._last_world_entropy": "1.16.0",
    "VLLMGeneration._iter_named_params": "1.16.0",
    "utils._ChunkedLogProbFunction": "1.16.0",  # in sparse.autograd.fused_head, which finds it without importing TRL
    "utils._use_triton": "1.16.0",  # there too: whether only the tokens that count are scored
    "chat_template_utils.add_response_schema": "1.16.0",  # all five in generate.tool_templates
    "chat_template_utils.get_training_chat_template": "1.16.0",
    "chat_template_utils.is_chat_template_prefix_preserving": "1.16.0",
    "chat_template_utils.parse_response": "1.16.0",
    "chat_template_utils.supports_tool_calling": "1.16.0",
}
"""Each private name that is used, and the version whose source was read for it."""


ROUNDING = 1e-12
"""An advantage in fp64 that is smaller is none: rewards were weighted and added before their mean was taken."""


class UnknownTRL(ImportError, ValueError):
    """The installed TRL is none that the trainer was tested with."""


def require_tested(installed: str) -> None:
    """Raises UnknownTRL, in one sentence, for a version that is in none of `SERIES`."""
    if ".".join(installed.split(".")[:2]) not in SERIES:
        known = " or ".join(SERIES)
        raise UnknownTRL(
            f"Training needs TRL {known}, and {installed} is installed: pip install 'trl=={SERIES[-1]}.*'."
        )


require_tested(version("trl"))

import torch  # noqa: E402

# TRL is imported after the check, which would not be reached where a name is gone.
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from trl.generation import vllm_generation  # noqa: E402
from trl.import_utils import is_vllm_available  # noqa: E402
from trl.trainer import utils  # noqa: E402
from trl.trainer.utils import RepeatSampler  # noqa: E402

__all__ = ["GRPOConfig", "GRPOTrainer", "RepeatSampler", "is_vllm_available", "vllm_generation"]


_NO_TRUNCATION = tuple((1.0, k, p, 1.0) for k in (0, None) for p in (0.0, None))
"""Values of top_p, top_k, min_p and repetition_penalty that leave a distribution as it is."""


SCORES_BY_CALLING = hasattr(utils, "add_fused_lm_head")
"""Whether log-probabilities are asked of the model itself; TRL 1.14 asks its backbone, past whatever wraps it."""


class OpenTrainer(GRPOTrainer):
    """TRL's trainer with names of its own for the places where a subclass steps in."""

    # transformers declares these more loosely than a trainer with a model has them
    args: Any
    model: Any
    train_dataset: Any
    processing_class: Any
    optimizer: Any
    lr_scheduler: Any
    ref_model: Any
    num_generations: int
    _told_of_rollouts: dict[str, list[float]] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.phases = Phases()
        super().__init__(*args, **kwargs)
        if self.use_vllm:
            generation: Any = self.vllm_generation
            generation.sync_weights = self._timed("sync", generation.sync_weights)

    def _timed(self, phase: str, function: Any) -> Any:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phases.of(phase):
                return function(*args, **kwargs)

        return timed

    def loss(self, model: Any, batch: dict[str, Any]) -> Any:
        """A micro-batch's loss, a scalar with its graph."""
        return super()._compute_loss(model, batch)

    def log_probs(self, model: Any, *asked: Any, **options: Any) -> Any:
        """Log-probabilities of completion tokens (rollouts, tokens) first, then TRL's own extras.

        Args:
            asked: token ids and attention mask (rollouts, prompt and completion), and how many tokens are the
                completion's.
        """
        return super()._get_per_token_logps_and_entropies(model, *asked, **options)

    def problem_order(self, dataset: Any) -> Any:
        """The sampler that decides which problems a step takes."""
        return super()._get_train_sampler(dataset)

    def log_values(self, name: str) -> list[float]:
        """What is logged under a name when the step is over, as the mean of this list."""
        return self._metrics["train"][name]

    def rename_logged(self, name: str, other: str) -> None:
        """Log under `other` what TRL logs under `name`."""
        logged = self._metrics["train"]
        logged[other] += logged.pop(name, [])

    @property
    def last_rollouts(self) -> Any:
        """Prompts, completions, rewards and extras of the rollouts generated last."""
        return self._logs

    def generate_turn(
        self, contexts: list[list[int]], group: int
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Token ids of one completion for each context, with their log-probabilities where the engine gives them.

        Args:
            group: how many contexts in a row are the same.
        """
        return self._generate_single_turn(contexts, None, {}, group)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a completion."""
        several = getattr(self, "eos_token_ids", None)  # TRL 1.14 knows one
        return list(several) if several else [self.processing_class.eos_token_id]

    @property
    def positions(self) -> int | None:
        """Tokens of a prompt and its completion that the model, or the engine for it, reads; None for no limit."""
        own = positions_of(self.model)
        engines = self.args.vllm_max_model_length if self.use_vllm else None
        known = [most for most in (own, engines) if isinstance(most, int)]
        return min(known, default=None)

    def rewarded(self, rewards: Any, truncated: float) -> None:
        """A step's rollouts of all ranks have their rewards (rollouts,), a group of each problem one after another."""

    @property
    def rewards_entropy(self) -> bool:
        """Whether the loss has a term of the policy's entropy, beside that of the advantages."""
        return bool(getattr(self, "_entropy_bonus_enabled", False))

    def sample(self, contexts: list[list[int]]) -> list[list[int]] | None:
        """Token ids of one completion for each context, its stop token included; None to leave it to TRL."""
        return None

    @property
    def samples_plainly(self) -> bool:
        """Whether TRL would sample by transformers in this process, at a temperature and nothing else."""
        args = self.args
        return (
            not (self.use_vllm or getattr(self, "use_transformers_continuous_batching", False))
            and (args.top_p, args.top_k, args.min_p, args.repetition_penalty) in _NO_TRUNCATION
            and not args.generation_kwargs
            and args.cache_implementation is None
            and (
                self.accelerator.distributed_type.name in ("NO", "MULTI_CPU", "MULTI_GPU")
                or self.accelerator.is_fsdp2
            )
        )

    # Rollouts that are trained on for several steps

    def in_hand(self) -> dict[str, Any] | None:
        """What a checkpoint must hold for the next step beside values, moments and random states; None for nothing.

        Between two generations: the rollouts that are still to be trained on, and what was said of them. With an
        entropy target: how far its controller is.
        """
        between = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        adaptive = bool(getattr(self, "use_adaptive_entropy", False))
        if not between and not adaptive:
            return None
        return {
            "step": self._step,
            "rollouts": self._buffered_inputs if between else None,
            "numbers": self._told_of_rollouts,
            "logs": json.dumps(self._logs, default=_plain) if between else None,
            "entropy": (self.entropy_coef, self._last_world_entropy) if adaptive else None,
        }

    def take_in_hand(self, held: dict[str, Any]) -> None:
        """Go on from what `in_hand` gave."""
        self._step, self._told_of_rollouts = held["step"], held["numbers"]
        if held["rollouts"] is not None:
            self._buffered_inputs = held["rollouts"]
            _refill(self._logs, json.loads(held["logs"]))
        if held["entropy"] is not None:
            self.entropy_coef, self._last_world_entropy = held["entropy"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's own; a step that trains on rollouts of an earlier one says of them what was said then."""
        logged = self._metrics["train"]
        if "loss" in logs and "reward" not in logged and self._told_of_rollouts is not None:
            logged.update({name: list(values) for name, values in self._told_of_rollouts.items()})
        super().log(logs, *args, **kwargs)

    def completions(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, *rest: Any, **named: Any
    ) -> Any:
        """Token ids of a completion for each of this process's contexts, and their log-probabilities or None."""
        with contiguous_head(self.model):
            if self.samples_plainly and not images and not multimodal_fields:
                said = self.sample(prompt_ids)
                if said is not None:
                    return said, None
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *rest, **named)

    # What TRL itself calls

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        return self.completions(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A forward and a backward pass; the first of a step's generates and scores before."""
        with self.phases.of("train"):
            return super().training_step(*args, **kwargs)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with self.phases.of("generate"):
            return super()._generate(*args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
        """In fp64, in which the mean of equal fp32 rewards is that reward, and of no other number.

        In fp32 eight rewards of 0.2 differ from their mean by 1.5e-8. Adam would make whole steps of it.
        """
        with self.phases.of("score"):
            rewards = super()._calculate_rewards(inputs, prompts, completions, ids).double()
        ended = {*self.stop_ids, self.processing_class.pad_token_id}
        cut_off = torch.tensor([each[-1] not in ended for each in ids], device=self.accelerator.device)
        self.rewarded(rewards.nansum(dim=1), float(self.accelerator.gather(cut_off).float().mean()))
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        logged = self._metrics["train"]
        before = {name: len(values) for name, values in logged.items()}
        scored = super()._generate_and_score_completions(inputs)
        found = {name: values[before.get(name, 0) :] for name, values in logged.items()}
        self._told_of_rollouts = {name: list(values) for name, values in found.items() if values}
        exact = scored["advantages"]
        scored["advantages"] = exact.masked_fill(exact.abs() < ROUNDING, 0.0).float()
        return scored

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        return self.loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return self.log_probs(model, *args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return self.problem_order(dataset if dataset is not None else self.train_dataset)


def _plain(value: Any) -> Any:
    """A deque as a list; what else JSON has no word for, in its own words."""
    return list(value) if isinstance(value, deque) else str(value)


def _refill(held: dict[str, Any], content: dict[str, Any]) -> None:
    """Put lists into deques of the same names, by way of dictionaries that make theirs when asked."""
    for name, value in content.items():
        if isinstance(value, dict):
            _refill(held[name], value)
        else:
            held[name].clear()
            held[name].extend(value)


def pushed_weights(generation: Any) -> Any:
    """The method of a trainer's ``VLLMGeneration`` that gives the names and tensors it pushes, or None."""
    return getattr(generation, "_iter_named_params", None)


def push_instead(generation: Any, weights: Any) -> None:
    """Have a ``VLLMGeneration`` push what `weights()` gives."""
    generation._iter_named_params = weights
