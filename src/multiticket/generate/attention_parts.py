"""Attention to some keys at a time, put together by the parts' normalisers.

The softmax over two parts is the mean of those over each, weighted by their sums of exponentials: the same numbers as
over the whole, but for rounding. Given the normaliser of the whole, a part's gradients need nothing of the other parts
(FlashAttention-2, arXiv 2307.08691, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TOGETHER = 1 << 22
"""Scores that are computed at once: 16 MiB."""


class Part(NamedTuple):
    """Keys and values (n, heads, tokens, width)."""

    keys: Tensor
    values: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Part:
        return Part(change(self.keys), change(self.values))


class Found(NamedTuple):
    """What queries find: ``out`` (n, heads, queries, width), and ``norm`` (n, heads, queries, 1), the logarithm of the
    sum of their scores' exponentials."""

    out: Tensor
    norm: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Found:
        return Found(change(self.out), change(self.norm))


def find(query: Tensor, part: Part, bias: Tensor | None = None) -> Found:
    """What queries (n, heads, queries, width), scaled before, find in one part.

    Args:
        bias: (n or 1, queries or 1, tokens), added to the scores; -inf hides a key. Of a part that is hidden from a
            query as a whole the output is 0, and the normaliser -inf.
    """
    out = query.new_empty(*query.shape[:3], part.values.shape[3])
    norm = query.new_empty(*query.shape[:3], 1)
    for rows, some in _pieces(query, part):
        scores = query[rows, :, some] @ part.keys[rows].transpose(2, 3)
        hidden = _bias_of(bias, rows, some)
        if hidden is not None:
            scores += hidden
        top = scores.amax(-1, keepdim=True)
        if hidden is not None:
            top.clamp_(min=torch.finfo(top.dtype).min)
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        norm[rows, :, some] = total.log() + top
        if hidden is not None:
            total.clamp_(min=torch.finfo(total.dtype).tiny)
        out[rows, :, some] = (weights @ part.values[rows]) / total
    return Found(out, norm)


def put_together(found: Sequence[Found]) -> Found:
    """What queries find in all parts, from what they find in each."""
    norms = torch.stack([norm for _, norm in found])
    weights = norms.softmax(0)
    out = weights[0] * found[0].out
    for weight, (other, _) in zip(weights[1:], found[1:], strict=True):
        out += weight * other
    return Found(out, norms.logsumexp(0))


def gradients(
    query: Tensor, part: Part, bias: Tensor | None, norm: Tensor, grad: Tensor, along: Tensor
) -> tuple[Tensor, Part]:
    """Gradients of queries, and of one part's keys and values, each in its shape.

    Args:
        query, part, bias: what `find` was given.
        norm: (n, heads, queries, 1) of all parts together.
        grad: (n, heads, queries, width) of the output of all parts together.
        along: (n, heads, queries, 1) its product with that output.
    """
    of_query, of_part = torch.empty_like(query), part.each(torch.zeros_like)
    for rows, some in _pieces(query, part):
        asked, keys, pulled = query[rows, :, some], part.keys[rows], grad[rows, :, some]
        weights = asked @ keys.transpose(2, 3)
        hidden = _bias_of(bias, rows, some)
        if hidden is not None:
            weights += hidden
        weights.sub_(norm[rows, :, some]).exp_()
        of_part.values[rows] += weights.transpose(2, 3) @ pulled
        of_scores = pulled @ part.values[rows].transpose(2, 3)
        of_scores.sub_(along[rows, :, some]).mul_(weights)
        of_query[rows, :, some] = of_scores @ keys
        of_part.keys[rows] += of_scores.transpose(2, 3) @ asked
    return of_query, of_part


def _pieces(query: Tensor, part: Part) -> Iterator[tuple[slice, slice]]:
    """Rows, and queries of each, whose scores are computed at once."""
    n, heads, queries, _ = query.shape
    each = heads * part.keys.shape[2]
    rows = max(1, TOGETHER // (each * queries))
    some = queries if rows > 1 else max(1, min(queries, TOGETHER // each))
    for row in range(0, n, rows):
        for first in range(0, queries, some):
            yield slice(row, row + rows), slice(first, first + some)


def _bias_of(bias: Tensor | None, rows: slice, some: slice) -> Tensor | None:
    """(rows or 1, 1, queries or 1, tokens) the bias of some queries' scores."""
    if bias is None:
        return None
    own, each = bias.shape[0] > 1, bias.shape[1] > 1
    return bias[rows if own else slice(None), some if each else slice(None)][:, None]
