"""Attention of many rows to prompts that lie in memory once.

Rows that go on from one prompt differ only in what they have said. Their keys and values are kept in three parts: of
the tokens that all prompts begin with (once), of the rest of each prompt (once a prompt), and of each row's own tokens.
Attention is computed for each part, where all rows that share one are one matrix product, and put together
(`attention_parts`). So an evaluation with five completions of each problem holds, and reads for every token, less than
a fifth of the keys and values that it would with whole rows.

For CPUs: a GPU's time goes into the launches of small products, of which this has more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from multiticket.generate.attention_parts import Part, find, put_together
from multiticket.generate.own_attention import AttendingLayer, OtherAttention

LEAST_ROOM = 16


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
        bias = hiding(attention[:, common:])
        self.shared = []
        for layer in prompts.layers:
            self.shared.append(SharedLayer(layer, common, bias, rows))
            layer.reset()
        self.layers = [*self.shared]
        self.rows = rows

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with some rows; prompts that none goes on from are let go, once they are half of all."""
        prompts = self.rows.select(indices)
        for layer in self.shared:
            layer.select(indices, prompts)


def hiding(attention: Tensor) -> Tensor | None:
    """(prompts, 1, tokens) what hides the padding of an attention mask (prompts, tokens); None where it has none."""
    padding = ~attention.bool()
    if not padding.any():
        return None
    return torch.zeros(padding.shape).masked_fill_(padding, -torch.inf)[:, None]


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
        self.counts = counts

    def together(self, one: Tensor, empty: float | None = None) -> Tensor:
        """(prompts, heads, most rows of one * n, width) of rows (rows, heads, n, width), all of a prompt together.

        Args:
            empty: what stands where a prompt has fewer rows; default: any row.
        """
        prompts, most = self.slots.shape
        _, heads, n, width = one.shape
        found = one[self.slots]
        if empty is not None and int(self.counts.min()) < most:
            found[torch.arange(most) >= self.counts[:, None]] = empty
        return found.transpose(1, 2).reshape(prompts, heads, most * n, width)

    def apart(self, one: Tensor, n: int) -> Tensor:
        """The rows (rows, heads, n, width) again, of what has them `together`."""
        prompts, heads, _, width = one.shape
        return one.view(prompts, heads, -1, n, width).transpose(1, 2).flatten(0, 1)[self.place]

    def select(self, keep: Tensor) -> Tensor | None:
        """The prompts that stay, should half of them have no rows any more."""
        which = self.which[keep]
        used, renumbered = which.unique(return_inverse=True)
        few = 2 * len(used) <= self.prompts
        if few:
            self.prompts = len(used)
        self._take(renumbered if few else which)
        return used if few else None


class SharedLayer(AttendingLayer):
    """One layer's keys and values, in three parts: ``common`` (n = 1), ``own`` (prompts) and ``tail`` (rows)."""

    def __init__(self, prompts: Any, common: int, bias: Tensor | None, rows: Rows) -> None:
        super().__init__()
        whole = self.begin(prompts)
        self.before = whole.keys.shape[-2]
        self.wide = torch.promote_types(torch.float32, whole.keys.dtype)
        whole = whole.each(lambda one: one.to(self.wide))
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
        return self.given(*self.tail)

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

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        rows, heads, tokens, width = query.shape
        if tokens != 1:
            raise OtherAttention
        shared = keys.shape[1]  # heads of keys, each for some of queries
        query = query.reshape(rows, shared, heads // shared, width).to(self.wide) * scaling
        found = [find(query, Part(keys, values))]
        in_own = find(self.rows.together(query), self.own, self.bias)
        found.append(in_own.each(lambda one: self.rows.apart(one, heads // shared)))
        if self.common is not None:
            asked = query.transpose(0, 1).reshape(1, shared, -1, width)
            in_common = find(asked, self.common)
            found.append(in_common.each(lambda one: one.view(shared, rows, -1, one.shape[3]).transpose(0, 1)))
        return put_together(found).out.reshape(rows, heads, 1, -1)
