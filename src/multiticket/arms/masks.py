"""The mask that a run's settings name, on a model; also where it takes the model's own rollouts to choose it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from multiticket import tasks
from multiticket.arms.start import load_start
from multiticket.config import RunConfig
from multiticket.generate.completion import complete, stop_tokens
from multiticket.generate.prompts import prompt_texts
from multiticket.mask import Mask, MaskRule
from multiticket.mask.scores import WEIGHT_SCORES, squared_gradients
from multiticket.tasks.tools import toolbox_of

FISHER_ROLLOUTS = 64
READ_THE_MODEL = frozenset({*WEIGHT_SCORES, "fisher"})
"""Methods whose positions cannot be known without weights; their number can."""


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


def mask_by_shapes(model: Any, config: RunConfig) -> Mask:
    """The mask of a run on a model without weights.

    For a method that reads the weights, random positions of the same tensors: as many of each, int(n * density).
    """
    if config.from_ticket is not None:
        return load_start(config.from_ticket)[0].mask
    if config.method in READ_THE_MODEL:
        config = config.model_copy(update={"method": "random", "mask_options": {}})
    return Mask.from_rule(model, mask_rule(config))


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
    if toolbox_of(task) is not None:
        raise ValueError(
            f"The mask method {config.method} needs rollouts, and has none with tools: choose another."
        )
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
