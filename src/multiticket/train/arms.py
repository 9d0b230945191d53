"""What of a model each arm trains: everything, a mask's values, or a LoRA adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from multiticket import tasks
from multiticket.config import RunConfig
from multiticket.evaluate.completion import complete, stop_tokens
from multiticket.evaluate.prompts import prompt_texts
from multiticket.mask import Mask, MaskRule, masked_candidates
from multiticket.mask.scores import squared_gradients
from multiticket.sparse import Attachment
from multiticket.train.lora_size import values_per_rank
from multiticket.train.start import load_start

FISHER_ROLLOUTS = 64


def build_mask(model: PreTrainedModel, config: RunConfig, tokenizer: Any) -> Mask:
    """The mask of the settings' rule on a base model, or that of the ticket which the run goes on from.

    Every method of `mask.selectors` needs shapes alone; magnitude, principal and off-principal read the weights;
    ``fisher`` takes the positions with the largest mean squared gradient of the base's own rollouts on the task's
    training problems (option ``rollouts``, 64 by default), sampled with the mask's seed. The latter four give
    tickets that store their positions.

    Raises:
        ValueError: for an unknown method or a setting it does not take.
    """
    if config.from_ticket is not None:
        return load_start(config.from_ticket)[0].mask
    rule = mask_rule(config)
    if config.method != "fisher":
        return Mask.from_rule(model, rule)
    rule.only_options("rollouts")
    rollouts = rule.options.get("rollouts", FISHER_ROLLOUTS)
    if type(rollouts) is not int or rollouts < 1:
        raise ValueError(f"Option rollouts must be a whole number of at least 1, not {rollouts!r}.")
    scores = squared_gradients(model, rollout_losses(model, tokenizer, config, rollouts))
    return Mask.from_scores(model, scores, config.density, rule)


def mask_rule(config: RunConfig) -> MaskRule:
    """The rule that the settings name."""
    return MaskRule(
        method=config.method,
        density=config.density,
        seed=config.seed,
        part=config.part,
        scope=config.scope,
        options=config.mask_options,
    )


def rollout_losses(
    model: PreTrainedModel, tokenizer: Any, config: RunConfig, rollouts: int
) -> Iterator[torch.Tensor]:
    """Minus the log-probability of each of the model's own completions: scalars, with their graph.

    Of the first `rollouts` training problems, from the beginning again where there are fewer.
    """
    task = tasks.asked(tasks.get(config.task), tokenizer, config.asking)
    problems = list(task.problems("train")["prompt"])
    prompts = [problems[number % len(problems)] for number in range(rollouts)]
    tokens = config.max_completion_tokens or task.max_completion_tokens
    prompts = prompt_texts(prompts, tokenizer, task)
    completions = complete(model, tokenizer, prompts, tokens, config.temperature, seed=config.seed)
    end = stop_tokens(model, tokenizer)[:1]
    was_training = model.training
    model.eval()
    try:
        for prompt, completion in zip(prompts, completions, strict=True):
            before = tokenizer(text=prompt)["input_ids"]
            said = tokenizer(text=completion, add_special_tokens=False)["input_ids"] + end
            ids = torch.tensor([before + said[:tokens]], device=model.device)
            logits = model(input_ids=ids).logits[0, len(before) - 1 : -1].float() / config.temperature
            yield -logits.log_softmax(-1).gather(1, ids[0, len(before) :, None]).sum()
    finally:
        model.train(was_training)


def add_lora(model: PreTrainedModel, config: RunConfig) -> Any:
    """A PEFT model with a fresh LoRA adapter on every linear layer but the head, fp32, scaled by alpha / rank.

    The adapter's random half is drawn with the run's seed; the caller's random state is left as it was.

    Raises:
        ValueError: PEFT is not installed, or does not know how to adapt this model.
    """
    rank = lora_rank(model, config)
    peft = _peft()
    settings = peft.LoraConfig(
        r=rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            return peft.get_peft_model(model, settings)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"PEFT refuses LoRA on all linear layers of {config.model}: {reason}; take another arm."
        ) from None


def lora_rank(model: PreTrainedModel, config: RunConfig) -> int:
    """The rank asked for, or the one that trains nearest to density * all parameters; at least 1."""
    if config.lora_rank is not None:
        return config.lora_rank
    numel = sum(parameter.numel() for parameter in masked_candidates(model).values())
    return max(1, round(config.density * numel / values_per_rank(model)))


def save_adapter(model: Any, folder: Path) -> None:
    """The adapter alone, as PEFT keeps it: ``adapter_config.json`` and ``adapter_model.safetensors``."""
    model.save_pretrained(folder, save_embedding_layers=False)


def with_adapter(base: Any, adapter: Path) -> Any:
    """The base with a PEFT adapter read from its folder on top, not merged.

    Raises:
        ValueError: PEFT is not installed, the folder holds no adapter in safetensors, or it does not fit the base.
    """
    peft = _peft()
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ValueError(f"{adapter} is not a PEFT adapter: it holds no adapter_model.safetensors.")
    try:
        return peft.PeftModel.from_pretrained(base, str(adapter))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"The adapter in {adapter} does not fit this base: {reason}.") from None


def typical_weight(model: Any, attachment: Attachment | None) -> float:
    """Root mean square of the weights that train: of matrices, or of all where no matrix trains."""
    named = dict(model.named_parameters() if attachment is None else attachment.named_parameters())
    shapes = {name: parameter.dim() for name, parameter in masked_candidates(model).items()}
    matrices = [values for name, values in named.items() if shapes.get(name, 0) >= 2]
    trained = [values.detach().float() for values in matrices or named.values()]
    squares = sum(float(values.square().sum()) for values in trained)
    return math.sqrt(squares / max(1, sum(values.numel() for values in trained)))


def trained_count(model: nn.Module) -> int:
    """Number of values that require a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError:
        raise ValueError("LoRA needs PEFT: pip install 'multiticket[peft]'.") from None
    return peft
