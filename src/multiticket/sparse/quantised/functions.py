"""Autograd functions over a quantised weight: whatever is dense is made for one product and let go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from multiticket.sparse.autograd.functions import as_dtype, no_autocast
from multiticket.sparse.gradient.product import product
from multiticket.sparse.hooked.plan import LinearPlan


class QuantisedLinear(torch.autograd.Function):
    """``x W^T + b`` with W dequantised and the values in it; backward makes W again, and gathers k entries of its
    gradient into their place.

    ``leaf`` (k,) takes part so that there is a graph even where x needs no gradient; it gets none from here.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, leaf: Tensor, plan: LinearPlan) -> Tensor:
        tensor: Any = plan.tensor
        ctx.plan = plan
        if plan.columns is not None:
            kept: tuple[Tensor, ...] = (x.index_select(-1, plan.columns),)
        else:
            kept = plan.factors_of(x) or (x,)
        ctx.save_for_backward(tensor.served, *kept)
        dense = tensor.whole(tensor.served).to(x.dtype)
        if x.dim() > 2 and not x.is_contiguous():  # as torch folds it for a weight that trains: the same bits
            return F.linear(x.reshape(-1, x.shape[-1]), dense, bias).view(*x.shape[:-1], -1)
        return F.linear(x, dense, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        plan: LinearPlan = ctx.plan
        tensor: Any = plan.tensor
        served, *kept = ctx.saved_tensors
        dx = dbias = None
        with no_autocast(dy.device.type):
            if ctx.needs_input_grad[0]:
                dx = dy @ as_dtype(tensor.whole(served), dy.dtype)
            dy = dy.reshape(-1, dy.shape[-1])
            if ctx.needs_input_grad[1]:
                dbias = dy.sum(0)
            if _accumulates(ctx):
                x = product(kept[0], kept[1:])
                plan.gather(dy, as_dtype(x.reshape(-1, x.shape[-1]), dy.dtype))
        return dx, dbias, None, None


class WholeWeight(torch.autograd.Function):
    """The dense weight for whoever reads it past its layer; backward gathers k entries of its gradient."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, plan: LinearPlan) -> Tensor:
        ctx.plan = plan
        return plan.tensor.fresh_dense()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        plan: LinearPlan = ctx.plan
        if _accumulates(ctx):
            plan.collector.put(plan.tensor, gradient.reshape(-1), plan.tensor.positions)
        return None, None


def _accumulates(ctx: Any) -> bool:
    """Whether the leaf's node will run: not so in a pass for the gradients of chosen inputs alone."""
    return torch._C._will_engine_execute_node(ctx.next_functions[-1][0])
