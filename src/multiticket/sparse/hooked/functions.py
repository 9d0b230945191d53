"""Lean autograd functions, where torch's own forward with a hook would hold too much.

- ``LeanLinear``: a layer that keeps only the columns a mask touches, or the factors of its input, or whose dense
  gradient is so large that it is made in blocks of rows.
- ``Lookup``: an embedding, of which only rows that occurred have a gradient.
- ``AnchoredLookup``: the same for the model's first embedding, whose node ends the backward pass.
- ``TracedLinear``: any masked linear layer under ``torch.compile``: plain aten, and k numbers out of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from multiticket.sparse.autograd.functions import as_dtype, no_autocast
from multiticket.sparse.gradient.embedding import sum_by_slot
from multiticket.sparse.gradient.product import product
from multiticket.sparse.hooked.plan import LinearPlan
from multiticket.sparse.hooked.tensor import MaskedTensor


class LeanLinear(torch.autograd.Function):
    """``x W^T + b``; backward gathers k entries of W's gradient into their place.

    ``leaf`` (k,) takes part so that there is a graph even where x needs no gradient; it gets none from here. There are
    few calls in it: on a GPU a small layer's time is theirs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, leaf: Tensor, plan: LinearPlan) -> Tensor:
        ctx.plan = plan
        dense = plan.dense
        if plan.columns is not None:
            ctx.save_for_backward(dense, x.index_select(-1, plan.columns))
        else:
            ctx.save_for_backward(dense, *(plan.factors_of(x) or (x,)))
        if x.dtype != dense.dtype:  # under autocast
            dense, bias = dense.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if x.dim() > 2 and not x.is_contiguous():  # as torch folds it for a weight that trains: the same bits
            return F.linear(x.reshape(-1, x.shape[-1]), dense, bias).view(*x.shape[:-1], -1)
        return F.linear(x, dense, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The hooks that gather a ticket's gradient give no second derivative; call backward() without "
                'create_graph, or attach with gradient="blocks".'
            )
        device = dy.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with no_autocast(device):
                return _lean_backward(ctx, dy)
        return _lean_backward(ctx, dy)


def _lean_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    plan: LinearPlan = ctx.plan
    dense, *kept = ctx.saved_tensors
    of_input, of_bias, *_ = ctx.needs_input_grad
    flat = dy if dy.dim() == 2 else dy.reshape(-1, dy.shape[-1])
    dx = dbias = None
    if of_input:
        dx = flat.mm(as_dtype(dense, flat.dtype)).view(*dy.shape[:-1], dense.shape[1])
    if of_bias:
        dbias = flat.sum(0)
    if torch._C._will_engine_execute_node(
        ctx.next_functions[-1][0]
    ):  # the leaf's: not a pass for chosen inputs alone
        x = kept[0] if len(kept) == 1 else product(kept[0], kept[1:])
        x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        plan.gather(flat, as_dtype(x, flat.dtype))
    return dx, dbias, None, None


class TracedLinear(torch.autograd.Function):
    """``x W^T + b`` for a compiler: backward returns the leaf's gradient (k,), by operations it can see through."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        leaf: Tensor,
        dense: Tensor,
        positions: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
        bounds: tuple[tuple[int, int, int, int], ...],
    ) -> Tensor:
        ctx.save_for_backward(x if columns is None else x.index_select(-1, columns), dense)
        ctx.positions, ctx.rows, ctx.bounds = positions, rows, bounds
        ctx.dtype = leaf.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        if x.dtype != dense.dtype:
            dense, bias = dense.to(x.dtype), None if bias is None else bias.to(x.dtype)
        return F.linear(x, dense, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, dense = ctx.saved_tensors
        dx = dbias = dvalues = None
        if ctx.needs_input_grad[0]:
            dx = dy @ dense.to(dy.dtype)
        dy = dy.reshape(-1, dy.shape[-1])
        if ctx.needs_input_grad[1]:
            dbias = dy.sum(0).to(ctx.bias_dtype)
        if ctx.needs_input_grad[2]:
            x = x.reshape(-1, x.shape[-1]).to(dy.dtype)
            if ctx.rows is not None:
                dy = dy.index_select(1, ctx.rows)
            width = x.shape[1]
            pieces = [
                (dy[:, row:end_row].t() @ x).reshape(-1)[ctx.positions[begin:end].long() - row * width]
                for row, end_row, begin, end in ctx.bounds
                if begin < end
            ]
            dvalues = torch.cat(pieces).to(ctx.dtype) if len(pieces) > 1 else pieces[0].to(ctx.dtype)
        return dx, dbias, dvalues, *[None] * 5


class Lookup(torch.autograd.Function):
    """``W[tokens]``; backward returns the leaf's gradient (k,), from the rows that occurred."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, leaf: Tensor, dense: Tensor, positions: Tensor, padding_idx: int
    ) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.positions, ctx.padding_idx = positions, padding_idx
        ctx.rows, ctx.dtype = dense.shape[0], leaf.dtype
        return F.embedding(tokens, dense)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        dy = dy.reshape(-1, dy.shape[-1])
        dvalues = sum_by_slot(dy, tokens.reshape(-1), ctx.positions, ctx.rows, ctx.padding_idx)
        return None, dvalues.to(ctx.dtype), None, None, None


class AnchoredLookup(torch.autograd.Function):
    """``W[tokens]`` of the model's first embedding. Its node is the oldest of the pass, so it runs after all hooks, and
    returns what they gathered as the gradient of the values.

    ``tensor`` is None for an embedding outside the mask. ``probe`` is a leaf that gets no gradient: whether its node is
    to run tells a pass that accumulates into leaves from one that does not.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        dense: Tensor,
        padding_idx: int,
        tensor: MaskedTensor | None,
        collector: Any,
        probe: Tensor,
        *values: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.padding_idx, ctx.tensor, ctx.collector = padding_idx, tensor, collector
        collector.anchored = True
        return F.embedding(tokens, dense)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        collector, tensor = ctx.collector, ctx.tensor
        collector.refuse_unless_leaves_accumulate(ctx.next_functions[2][0])  # of tokens, dense, probe, ...
        if tensor is not None:
            (tokens,) = ctx.saved_tensors
            gradient = sum_by_slot(
                dy.reshape(-1, dy.shape[-1]),
                tokens.reshape(-1),
                tensor.positions,
                tensor.shape[0],
                ctx.padding_idx,
            )
            tensor.values_of.extra.append((tensor.begin, tensor.end, gradient))
        return (*[None] * 6, *collector.collect())
