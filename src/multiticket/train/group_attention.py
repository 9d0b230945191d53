"""Attention of rollouts to their prompts, which lie in memory once, with gradients.

What `generate/shared_cache.py` is to decoding: here with all tokens of a rollout at once, and a way back. Whole rows
would hold each prompt's keys and values once a rollout, and again for each query head that shares them, in every layer.
Here a group's queries are one matrix product with its prompt's. Kept for the way back are what goes in, what comes out
and its normalisers; scores are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from multiticket.generate.attention_parts import Part, find, gradients, put_together
from multiticket.generate.own_attention import AttendingLayer
from multiticket.generate.shared_cache import Rows, hiding


class GroupCache(DynamicCache):
    """The cache of rollouts that go on from shared prompts, with all their tokens at once.

    Args:
        prompts: keys and values of each distinct prompt, padded on the left; stays as it is.
        attention: (prompts, width) where prompts have tokens.
        which: (rollouts,) the prompt of each.
    """

    def __init__(self, prompts: DynamicCache, attention: Tensor, which: Tensor) -> None:
        super().__init__()
        rows, bias = Rows(which, len(attention)), hiding(attention)
        self.layers = [_GroupLayer(layer, rows, bias) for layer in prompts.layers]


class _GroupLayer(AttendingLayer):
    def __init__(self, prompts: Any, rows: Rows, bias: Tensor | None) -> None:
        super().__init__()
        self.prompts, self.rows, self.bias = self.begin(prompts), rows, bias

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Give back the keys and values (rollouts, heads, tokens, width) of the rollouts' own tokens; keep nothing."""
        return self.given(key_states, value_states)

    def get_seq_length(self) -> int:
        return self.prompts.keys.shape[2]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Each token finds its prompt's, and those of its rollout up to itself."""
        return _Attend.apply(query, keys, values, *self.prompts, self.rows, self.bias, scaling)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        prompt_keys: Tensor,
        prompt_values: Tensor,
        rows: Rows,
        bias: Tensor | None,
        scaling: float,
    ) -> Tensor:
        asked, own, prompts, causal = _taken((query, keys, values, prompt_keys, prompt_values), scaling)
        with torch.autocast(query.device.type, enabled=False):
            in_prompts = find(rows.together(asked), prompts, bias)
            in_own = find(asked, own, causal)
            out, norm = put_together([in_own, in_prompts.each(lambda one: rows.apart(one, asked.shape[2]))])
        # laid out as the layer's next product reads it, so that both keep one tensor
        out = out.view(*query.shape[:3], -1).transpose(1, 2).contiguous().transpose(1, 2)
        ctx.save_for_backward(query, keys, values, prompt_keys, prompt_values, out, norm)
        ctx.rows, ctx.bias, ctx.scaling = rows, bias, scaling
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given, (out, norm) = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        rows, bias, scaling = ctx.rows, ctx.bias, ctx.scaling
        asked, own, prompts, causal = _taken(given, scaling)
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.reshape(*asked.shape[:3], -1).to(asked.dtype)
            along = (grad * out.reshape(grad.shape)).sum(-1, keepdim=True)
            of_query, of_own = gradients(asked, own, causal, norm, grad, along)
            of_asked, of_prompts = gradients(
                rows.together(asked),
                prompts,
                bias,
                rows.together(norm),
                rows.together(grad, empty=0.0),
                rows.together(along, empty=0.0),
            )
            of_query += rows.apart(of_asked, asked.shape[2])
            of_query *= scaling
        found = (of_query.view(given[0].shape), *of_own, *of_prompts)
        return (*(one.to(like.dtype) for one, like in zip(found, given, strict=True)), None, None, None)


def _taken(given: Sequence[Tensor], scaling: float) -> tuple[Tensor, Part, Part, Tensor]:
    """Queries (rollouts, heads of keys, tokens of all heads of queries that share them, width), scaled; rollouts' and
    prompts' keys and values; and what hides later tokens. All in fp32 or wider."""
    wide = torch.promote_types(torch.float32, given[0].dtype)
    query, keys, values, *prompts = (one.to(wide) for one in given)
    rollouts, heads, tokens, width = query.shape
    shared = keys.shape[1]
    asked = query.reshape(rollouts, shared, -1, width) * scaling
    causal = asked.new_full((tokens, tokens), -torch.inf).triu(1).repeat(heads // shared, 1)[None]
    return asked, Part(keys, values), Part(*prompts), causal
