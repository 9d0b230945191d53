"""How autograd reaches the values: three functions that use the dense weight forward and give k numbers back.

The dense weight is frozen and is read as it is: nothing is added to it, nothing is copied. In each function
``values`` takes part in the graph only to receive its gradient.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from multiticket.sparse.gradient.columns import column_sums, take_columns
from multiticket.sparse.gradient.embedding import embedding_values_grad
from multiticket.sparse.gradient.factored import Factors
from multiticket.sparse.gradient.linear import linear_values_grad, values_grad
from multiticket.sparse.gradient.product import product


class ConnectedView(torch.autograd.Function):
    """The dense weight itself, as an alias whose gradient is gathered at the mask's positions, then dropped.

    The general path: right for any reader of a weight, at the price of a dense gradient that lives for a moment.
    To autograd the alias is no view, so that the weight may be written while a graph of before lives on; whoever saved
    it for a backward pass sees the write by the version, which is the weight's own.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, positions: Tensor) -> Tensor:
        ctx.positions = positions
        ctx.dtype = values.dtype
        return dense.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.take(ctx.positions.long()).to(ctx.dtype), None, None


class MaskedLinearFunction(torch.autograd.Function):
    """``x W^T + b``; backward takes the input's gradient as usual and only k entries of W's.

    ``positions`` and ``starts`` tell the entries within the ``rows`` and ``columns`` (None: all) that the mask touches.
    A masked bias is frozen too, and has values (k,) and positions of its own.
    Of the input, backward keeps only those columns, or its ``factors`` in its place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        bias_values: Tensor | None,
        bias_positions: Tensor | None,
        values: Tensor,
        dense: Tensor,
        positions: Tensor,
        starts: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
        method: str,
        factors: Factors | None,
    ) -> Tensor:
        kept = (x,) if columns is None else (take_columns(x, columns),)
        ctx.save_for_backward(dense, *(kept if factors is None else factors))
        ctx.positions, ctx.starts, ctx.rows, ctx.method = positions, starts, rows, method
        ctx.values_dtype = values.dtype
        ctx.bias_positions = bias_positions
        ctx.bias_dtype = None if bias is None else (bias if bias_values is None else bias_values).dtype
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
            dense = dense.to(x.dtype)
            bias = None if bias is None else bias.to(x.dtype)
        if x.dim() > 2 and not x.is_contiguous():  # as torch folds it for a weight that trains: the same bits
            return F.linear(x.reshape(-1, x.shape[-1]), dense, bias).view(*x.shape[:-1], -1)
        return F.linear(x, dense, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dense, *kept = ctx.saved_tensors
        dx = dbias = dbias_values = dvalues = None
        with no_autocast(dy.device.type):
            if ctx.needs_input_grad[0]:
                dx = dy @ as_dtype(dense, dy.dtype)
            dy = dy.reshape(-1, dy.shape[-1])
            if ctx.needs_input_grad[1]:
                dbias = as_dtype(dy.sum(0), ctx.bias_dtype)
            if ctx.needs_input_grad[2]:
                dbias_values = as_dtype(column_sums(dy, ctx.bias_positions), ctx.bias_dtype)
            if ctx.needs_input_grad[4]:
                if ctx.rows is not None:
                    dy = take_columns(dy, ctx.rows)
                x, *factors = (part.reshape(-1, part.shape[-1]) for part in kept)
                eager = type(dy) is Tensor and not torch.compiler.is_compiling() and dy.device.type != "meta"
                if factors and not (eager and x.dtype == dy.dtype):
                    x, factors = product(x, factors), []
                operands = dy, as_dtype(x, dy.dtype), ctx.positions, ctx.starts, ctx.method
                dvalues = values_grad(*operands, factors) if eager else linear_values_grad(*operands)
                dvalues = as_dtype(dvalues, ctx.values_dtype)
        return dx, dbias, dbias_values, None, dvalues, *[None] * 7


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, which takes microseconds also where it does nothing."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


_NOTHING = nullcontext()


def no_autocast(device: str) -> AbstractContextManager[Any]:
    """Entering autocast to switch it off takes a tenth of a small layer's backward pass; it is hardly ever on there."""
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return _NOTHING


class MaskedEmbeddingFunction(torch.autograd.Function):
    """``W[tokens]``; backward gives k entries of W's gradient and touches only the rows that occurred."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        values: Tensor,
        dense: Tensor,
        positions: Tensor,
        starts: Tensor,
        padding_idx: int,
    ) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.positions, ctx.starts, ctx.padding_idx = positions, starts, padding_idx
        ctx.values_dtype = values.dtype
        return F.embedding(tokens, dense)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        dvalues = embedding_values_grad(
            dy.reshape(-1, dy.shape[-1]), tokens.reshape(-1), ctx.positions, ctx.starts, ctx.padding_idx
        )
        return None, dvalues.to(ctx.values_dtype), None, None, None, None
