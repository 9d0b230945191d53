"""A training pass over groups of rollouts in which each prompt is computed once, with its gradient.

A group's rollouts begin alike, and where answers are short most of a pass is prompts. All but the last token of each
different prompt go through the model's layers once; every rollout goes on from there with its own keys and values of
them, whose gradients add up on the way back. On an accelerator that is left alone: the weight gradients of the second
part would all have to be kept until the first part's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from multiticket.generate.shared_prompts import inner, shares_prompts

PAYS = 0.8
"""A pass is shared where it takes at most this share of the tokens."""


class Continued:
    """A model that goes on from prompts computed before; called as the model is, with what follows them."""

    def __init__(self, model: Any, cache: DynamicCache, seen: Tensor) -> None:
        self.model = model
        self.cache = cache
        self.seen = seen
        """(rollouts, tokens before): 0 for padding."""

    def __call__(self, *, attention_mask: Tensor, **given: Any) -> Any:
        attention = torch.cat([self.seen, attention_mask], dim=1)
        return self.model(attention_mask=attention, past_key_values=self.cache, **given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def can_share(model: Any) -> bool:
    """Whether a model's passes can be shared: on a CPU, with every activation kept, and a cache that allows it."""
    return (
        model.device.type == "cpu"
        and shares_prompts(model)
        and not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    )


def share_of_tokens(prompts: int, prompt: int, rows: int, tokens: int) -> float:
    """How many of a pass's (rows, tokens) are computed where each of so many different prompts, of so many tokens, is
    taken once; 1 where that does not pay."""
    shared, whole = prompts * (prompt - 1) + rows * (tokens - prompt + 1), rows * tokens
    return shared / whole if shared <= PAYS * whole else 1.0


def prompts_of(ids: Tensor, attention: Tensor, tokens: int) -> tuple[Tensor, Tensor] | None:
    """The rollout that stands for each different prompt (prompts,), and each rollout's prompt (rollouts,).

    None where sharing them does not pay.

    Args:
        ids, attention: (rollouts, prompt and completion), prompts padded on the left.
        tokens: how many of them are the completion's.
    """
    width = ids.shape[1] - tokens
    if width < 2:
        return None
    both = torch.cat([ids[:, :width], attention[:, :width]], dim=1)
    different, which = torch.unique(both, dim=0, return_inverse=True)
    if share_of_tokens(len(different), width, *ids.shape) == 1:
        return None
    first = torch.empty(len(different), dtype=torch.long, device=ids.device)
    first[which.flip(0)] = torch.arange(len(ids) - 1, -1, -1, device=ids.device)
    return first, which


def after_prompts(model: Any, ids: Tensor, attention: Tensor, first: Tensor, which: Tensor) -> Continued:
    """`model` after the given tokens of each rollout's prompt.

    Args:
        ids, attention: (rollouts, prompt tokens but the last).
        first, which: what `prompts_of` says.
    """
    whole = inner(model)
    cache = DynamicCache(config=whole.config)
    layers = getattr(whole, whole.base_model_prefix)
    layers(input_ids=ids[first], attention_mask=attention[first], past_key_values=cache, use_cache=True)
    layer: Any
    for layer in cache.layers:
        layer.keys = layer.keys.index_select(0, which)
        layer.values = layer.values.index_select(0, which)
    return Continued(model, cache, attention)
