"""Our own attention in the place of a model's.

transformers calls the attention that a model's configuration names. While ours is named, a layer attends to what its
cache holds in its own way (`AttendingLayer`): on CPUs, where prompts that many rows share lie in memory once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer

from multiticket.generate.attention_parts import Part

NAME = "multiticket_shared_prompts"
"""In transformers' table."""
HARMLESS = {"position_ids", "cache_position", "output_attentions", "use_cache", "is_causal"}
"""What models tell their attention besides, and makes no difference to attention that looks back."""


class OtherAttention(Exception):
    """A model's attention is not the plain one: it has a bias, a cap, a window, or no keys of ours."""


class AttendingLayer(DynamicLayer):
    """One layer's keys and values, which says what queries find in them."""

    def begin(self, prompts: Any) -> Part:
        """Be a layer like that of prompts; their keys and values."""
        assert isinstance(prompts, DynamicLayer)
        keys, values = prompts.keys, prompts.values
        assert keys is not None
        assert values is not None
        self.lazy_initialization(keys, values)
        return Part(keys, values)

    def given(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values for `update` to give back, by which the model's attention knows this layer."""
        keys._attending_layer = self  # type: ignore[attr-defined]
        return keys, values

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """(rows, heads, tokens, width of values) what queries (rows, heads, tokens, width) find in it.

        Args:
            keys, values: what `update` gave back.
        """
        raise NotImplementedError


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in the place of its own attention.

    It makes no mask for an attention that it does not know; what is to be hidden is in the layer.
    """
    layer = getattr(key, "_attending_layer", None)
    told = {name for name, option in options.items() if option is not None and name not in HARMLESS}
    causal = options.get("is_causal")
    looks_back = query.shape[2] == 1 or (getattr(module, "is_causal", True) if causal is None else causal)
    if layer is None or attention_mask is not None or dropout or told or not looks_back:
        raise OtherAttention
    out = layer.attend(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return out.transpose(1, 2).contiguous().to(query.dtype), None


AttentionInterface.register(NAME, _attention)


_OTHERS: WeakSet[Any] = WeakSet()
"""Models that were seen to attend in another way."""


def listed(model: Any) -> bool:
    """Whether a model takes its attention from transformers' table."""
    return bool(getattr(model, "_supports_attention_backend", False))


def attends_by_parts(model: Any) -> bool:
    """Whether a model takes its attention from transformers' table, on a CPU."""
    return listed(model) and model.device.type == "cpu" and model not in _OTHERS


def takes_whole_rows(model: Any) -> None:
    """Remember that a model attends in another way than a plain one."""
    _OTHERS.add(model)


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """The model's layers attend to a cache of :class:`AttendingLayer`."""
    found: list[Any] = [getattr(part, "config", None) for part in model.modules()]
    configs = {id(config): config for config in found if hasattr(config, "_attn_implementation_internal")}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
