"""A training pass over groups of rollouts in which each prompt is computed once, with its gradient.

A group's rollouts begin alike, and where answers are short most of a pass is prompts. All but the last token of each
different prompt go through the model's layers once, and what all prompts begin with once for all of them; every rollout
goes on from there, and looks at its prompt's keys and values where they lie (`group_attention`) or, in a model that
attends in another way, at its own copy of them. Their gradients add up on the way back. On an accelerator that is left
alone: the weight gradients of the second part would all have to be kept until the first part's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from multiticket.generate.own_attention import (
    OtherAttention,
    attends_by_parts,
    own_attention,
    takes_whole_rows,
)
from multiticket.generate.shared_prompts import common_beginning, inner, places, shares_prompts
from multiticket.train.group_attention import GroupCache

PAYS = 0.8
"""A pass is shared where it takes at most this share of the tokens."""


class Continued:
    """A model that goes on from prompts computed before; called once, as the model is, with what follows them."""

    def __init__(
        self, model: Any, cache: DynamicCache, seen: Tensor, which: Tensor, counted: bool = False
    ) -> None:
        self.model = model
        self.cache = cache
        """Of the prompts."""
        self.seen = seen
        """(prompts, tokens before): 0 for padding."""
        self.which = which
        """(rollouts,) the prompt of each."""
        self.counted = counted
        """Whether the position of a token is its place among those that are no padding."""

    def __call__(self, *, attention_mask: Tensor, **given: Any) -> Any:
        attention = torch.cat([self.seen[self.which], attention_mask], dim=1)
        if self.counted:
            given["position_ids"] = places(attention)[:, self.seen.shape[1] :]
        whole = inner(self.model)
        padded_after = bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())
        if attends_by_parts(whole) and padded_after:  # which no token before looks at
            try:
                with own_attention(whole):
                    cache = GroupCache(self.cache, self.seen, self.which)
                    return self.model(attention_mask=attention, past_key_values=cache, **given)
            except OtherAttention:
                takes_whole_rows(whole)
        _hand_out(self.cache, self.which)
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


def share_of_tokens(prompts: int, prompt: int, rows: int, tokens: int, common: int = 0) -> float:
    """How many of a pass's (rows, tokens) are computed where each of so many different prompts, of so many tokens, is
    taken once, and what they begin with in `common` once for all; 1 where that does not pay."""
    before, whole = prompts * (prompt - 1), rows * tokens
    shared = before + rows * (tokens - prompt + 1)
    if shared > PAYS * whole:
        return 1.0
    if common_pays(common, prompts, before):
        shared -= common * (prompts - 1)
    return shared / whole


def common_pays(common: int, prompts: int, before: int) -> bool:
    """Whether so many tokens that all prompts begin with are computed by themselves; before: tokens of all prompts."""
    return common * (prompts - 1) >= (1 - PAYS) * before


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

    What all prompts begin with (a system prompt, solved examples) is computed for one of them, where that pays too.

    Args:
        ids, attention: (rollouts, prompt tokens but the last).
        first, which: what `prompts_of` says.
    """
    whole = inner(model)
    cache = DynamicCache(config=whole.config)
    layers = getattr(whole, whole.base_model_prefix)
    asked, seen = ids[first], attention[first]
    prompts = [tuple(row[there].tolist()) for row, there in zip(asked, seen.bool(), strict=True)]
    common = common_beginning(prompts) if turns_positions(whole.config) else 0
    if not common_pays(common, len(first), asked.numel()):
        layers(input_ids=asked, attention_mask=seen, past_key_values=cache, use_cache=True)
        return Continued(model, cache, seen, which)
    beginning = asked.new_tensor([prompts[0][:common]])
    layers(input_ids=beginning, past_key_values=cache, use_cache=True)
    _hand_out(cache, torch.zeros_like(first))
    seen = torch.cat([seen.new_ones(len(first), common), _after(seen, common)], dim=1)
    layers(
        input_ids=asked[:, common:],
        attention_mask=seen,
        position_ids=places(seen)[:, common:],
        past_key_values=cache,
        use_cache=True,
    )
    return Continued(model, cache, seen, which, counted=True)


def _after(attention: Tensor, common: int) -> Tensor:
    """Which of the columns from `common` on hold tokens after the common ones: their rows are padded on the left, so
    that as many of them as are padding hold some of the common tokens, or padding."""
    padding = attention.shape[1] - attention.sum(1, keepdim=True)
    columns = torch.arange(attention.shape[1] - common, device=attention.device)
    return (columns >= padding).to(attention.dtype)


def turns_positions(config: Any) -> bool:
    """Whether only distances between tokens count, as in models that rotate keys: then padding may stand anywhere."""
    asked = config.get_text_config()
    return any(getattr(asked, name, None) is not None for name in ("rope_parameters", "rope_theta"))


def _hand_out(cache: DynamicCache, which: Tensor) -> None:
    """Give each row the keys and values of the row that it goes on from."""
    layer: Any
    for layer in cache.layers:
        layer.keys = layer.keys.index_select(0, which)
        layer.values = layer.values.index_select(0, which)
