"""Attention of many rows to prompts that lie in memory once.

Rows that go on from one prompt differ only in what they have said. Their keys and values are kept in three parts: of
the tokens that all prompts begin with (once), of the rest of each prompt (once a prompt), and of each row's own tokens.
Attention is computed for each part, where all rows that share one are one matrix product, and put together by the
parts' normalisers: the same numbers as over the whole, but for rounding. So an evaluation with five completions of each
problem holds, and reads for every token, less than a fifth of the keys and values that it would with whole rows.

For CPUs: a GPU's time goes into the launches of small products, of which this has more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

NAME = "multiticket_shared_prompts"
"""Of the attention, in transformers' table."""
HARMLESS = {"position_ids", "cache_position", "output_attentions", "use_cache", "is_causal"}
"""What models tell their attention besides, and makes no difference to one new token that sees all before it."""
TOGETHER = 1 << 22
"""Scores that are computed at once: 16 MiB."""
LEAST_ROOM = 16


class OtherAttention(Exception):
    """A model's attention is not the plain one: it has a bias, a cap, a window, or no keys of ours."""


class SharedCache(DynamicCache):
    """The cache of rows that go on from shared prompts, one new token of each at a time.

    Args:
        prompts: keys and values of each distinct prompt, padded on the left.
        common: how many tokens all of them begin with.
        attention: (prompts, width) where prompts have tokens.
        which: (rows,) the prompt of each row.
    """

    def __init__(self, prompts: DynamicCache, common: int, attention: Tensor, which: Tensor) -> None:
        super().__init__()
        rows = Rows(which, len(attention))
        hidden = ~attention[:, common:].bool()
        bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf) if bool(hidden.any()) else None
        self.shared = []
        for layer in prompts.layers:
            assert isinstance(layer, DynamicLayer)
            self.shared.append(SharedLayer(layer, common, bias, rows))
            layer.reset()
        self.layers = [*self.shared]
        self.rows = rows

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with some rows; prompts that none goes on from are let go, once they are half of all."""
        prompts = self.rows.select(indices)
        for layer in self.shared:
            layer.select(indices, prompts)


class Rows:
    """Which rows go on from which prompt.

    ``slots`` (prompts, most rows of one) has the rows of each prompt, and any row where there are fewer; ``place``
    (rows,) is where each row is in it, flattened.
    """

    def __init__(self, which: Tensor, prompts: int) -> None:
        self.prompts = prompts
        self._take(which)

    def _take(self, which: Tensor) -> None:
        self.which = which
        counts = torch.bincount(which, minlength=self.prompts)
        order = which.argsort(stable=True)
        most = int(counts.max())
        before = counts.cumsum(0) - counts
        within = torch.arange(len(which)) - before[which[order]]
        self.place = torch.empty_like(which)
        self.place[order] = which[order] * most + within
        self.slots = torch.zeros(self.prompts * most, dtype=torch.long)
        self.slots[self.place] = torch.arange(len(which))
        self.slots = self.slots.view(self.prompts, most)

    def select(self, keep: Tensor) -> Tensor | None:
        """The prompts that stay, should half of them have no rows any more."""
        which = self.which[keep]
        used, renumbered = which.unique(return_inverse=True)
        few = 2 * len(used) <= self.prompts
        if few:
            self.prompts = len(used)
        self._take(renumbered if few else which)
        return used if few else None


class Part(NamedTuple):
    """Keys and values (n, heads, tokens, width)."""

    keys: Tensor
    values: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Part:
        return Part(change(self.keys), change(self.values))


class SharedLayer(DynamicLayer):
    """One layer's keys and values, in three parts: ``common`` (n = 1), ``own`` (prompts) and ``tail`` (rows)."""

    def __init__(self, prompts: DynamicLayer, common: int, bias: Tensor | None, rows: Rows) -> None:
        super().__init__()
        keys, values = prompts.keys, prompts.values
        assert keys is not None
        assert values is not None
        self.lazy_initialization(keys, values)
        self.before = keys.shape[-2]
        self.wide = torch.promote_types(torch.float32, keys.dtype)
        whole = Part(keys, values).each(lambda one: one.to(self.wide))
        self.common = whole.each(lambda one: one[:1, :, :common].contiguous()) if common else None
        self.own = whole.each(lambda one: one[:, :, common:].contiguous())
        self.bias, self.rows = bias, rows
        self.said = 0
        self._room = whole.each(
            lambda one: one.new_empty(len(rows.which), one.shape[1], LEAST_ROOM, one.shape[3])
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values (rows, heads, 1, width) of one token more; give back those of the rows' own."""
        if self.said == self._room.keys.shape[2]:
            self._room = self._room.each(lambda one: torch.cat([one, torch.empty_like(one)], dim=2))
        self._room.keys[:, :, self.said] = key_states[:, :, 0]
        self._room.values[:, :, self.said] = value_states[:, :, 0]
        self.said += 1
        keys, values = self.tail
        keys._shared_layer = self  # type: ignore[attr-defined]
        return keys, values

    @property
    def tail(self) -> Part:
        """Of the tokens that rows have said."""
        return self._room.each(lambda one: one[:, :, : self.said])

    def get_seq_length(self) -> int:
        return self.before + self.said

    def select(self, rows: Tensor, prompts: Tensor | None) -> None:
        self._room = self._room.each(lambda one: one.index_select(0, rows))
        if prompts is not None:
            self.own = self.own.each(lambda one: one.index_select(0, prompts))
            self.bias = None if self.bias is None else self.bias.index_select(0, prompts)


def attend(layer: SharedLayer, query: Tensor, scaling: float) -> Tensor:
    """(rows, heads, 1, width of values) of queries (rows, heads, 1, width): to all parts of a layer."""
    rows, heads, _, width = query.shape
    shared = layer.own.keys.shape[1]  # heads of keys, each for `group` of queries
    group = heads // shared
    query = query.reshape(rows, shared, group, width).to(layer.wide) * scaling
    found = [_attend(query, layer.tail)]

    slots, place = layer.rows.slots, layer.rows.place
    prompts, most = slots.shape
    asked = query[slots].transpose(1, 2).reshape(prompts, shared, most * group, width)
    out, norm = (
        one.view(prompts, shared, most, group, -1).transpose(1, 2).flatten(0, 1)[place]
        for one in _attend(asked, layer.own, layer.bias)
    )
    found.append((out, norm))
    if layer.common is not None:
        asked = query.transpose(0, 1).reshape(1, shared, rows * group, width)
        out, norm = (
            one.view(shared, rows, group, -1).transpose(0, 1) for one in _attend(asked, layer.common)
        )
        found.append((out, norm))

    weights = torch.stack([norm for _, norm in found]).softmax(0)
    mixed = weights[0] * found[0][0]
    for weight, (out, _) in zip(weights[1:], found[1:], strict=True):
        mixed += weight * out
    return mixed.reshape(rows, heads, 1, -1)


def _attend(query: Tensor, part: Part, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What queries (n, heads, queries, width) find in a part, and the logarithms (n, heads, queries, 1) of their sums.

    Args:
        bias: (n, tokens), added to the scores.
    """
    n, heads, queries, _ = query.shape
    tokens = part.keys.shape[2]
    some = max(1, TOGETHER // (heads * queries * tokens))
    if n > some:
        pieces = [
            _attend(
                query[i : i + some],
                part.each(lambda one, i=i: one[i : i + some]),  # type: ignore[misc]
                None if bias is None else bias[i : i + some],
            )
            for i in range(0, n, some)
        ]
        return torch.cat([out for out, _ in pieces]), torch.cat([norm for _, norm in pieces])
    some = max(1, TOGETHER // (n * heads * tokens))
    if queries > some:
        pieces = [_attend(few, part, bias) for few in query.split(some, dim=2)]
        return torch.cat([out for out, _ in pieces], dim=2), torch.cat([norm for _, norm in pieces], dim=2)
    scores = query @ part.keys.transpose(2, 3)
    if bias is not None:
        scores += bias[:, None, None]
    top = scores.amax(-1, keepdim=True)
    scores = scores.sub_(top).exp_()
    total = scores.sum(-1, keepdim=True)
    return (scores @ part.values) / total, total.log() + top


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
    layer = getattr(key, "_shared_layer", None)
    told = {name for name, option in options.items() if option is not None and name not in HARMLESS}
    if layer is None or attention_mask is not None or dropout or told or query.shape[2] != 1:
        raise OtherAttention
    out = attend(layer, query, query.shape[-1] ** -0.5 if scaling is None else scaling)
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
def shared_attention(model: Any) -> Iterator[None]:
    """The model's layers attend to a :class:`SharedCache`."""
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
