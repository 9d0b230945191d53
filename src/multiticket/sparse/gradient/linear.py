"""The gradient of k chosen entries of a linear weight, without keeping the dense gradient.

For ``y = x W^T``, the gradient of entry (r, c) of W is the dot product of column r of the output gradient with column
c of the input: ``sum_t dy[t, r] * x[t, c]``. Three ways to compute the k that are wanted, each tested against the plain
reference here, behind one ``torch.library`` operator:

- ``native``: k dot products by a C kernel, the fastest on a CPU; fp32 and bf16, where there is a compiler.
- ``sampled``: k dot products by ``torch.sparse.sampled_addmm``, for every dtype and without a compiler.
- ``blocks``: the dense product a block of rows at a time, each gathered and dropped.

``choice`` chooses, ``crop`` first leaves out the rows and columns that the mask does not touch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multiticket.sparse.gradient.blocks import blocks
from multiticket.sparse.gradient.native import can_take, native
from multiticket.sparse.gradient.product import product
from multiticket.sparse.gradient.sampled import sampled


def linear_reference(dy: Tensor, x: Tensor, positions: Tensor) -> Tensor:
    """The definition: the dense gradient, then the entries asked for.

    Args:
        dy: gradient of the layer's output (tokens, out_features).
        x: the layer's input (tokens, in_features).
        positions: flat row-major positions in the weight (k,), integer.

    Returns:
        (k,) in the dtype of ``dy``.
    """
    return (dy.T @ x).reshape(-1)[positions.long()]


@torch.library.custom_op("multiticket::linear_values_grad", mutates_args=())
def linear_values_grad(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor, method: str) -> Tensor:
    """Gradient of a linear weight's entries at ``positions``.

    Args:
        dy: (tokens, out_features).
        x: (tokens, in_features), the dtype of ``dy``.
        positions: sorted flat positions (k,), int32 or int64.
        starts: ``row_starts`` of the positions (out_features + 1,).
        method: one of ``choice.METHODS``.

    Returns:
        (k,), fp32, or fp64 where ``dy`` is; all sums are in that dtype.
    """
    return values_grad(dy, x, positions, starts, method)


@linear_values_grad.register_fake
def _(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor, method: str) -> Tensor:
    return dy.new_empty(positions.shape, dtype=torch.promote_types(torch.float32, dy.dtype))


def values_grad(
    dy: Tensor,
    x: Tensor,
    positions: Tensor,
    starts: Tensor,
    method: str,
    factors: Sequence[Tensor] = (),
) -> Tensor:
    """What ``linear_values_grad`` computes, without the operator's dispatch: for eager tensors.

    Args:
        factors: by which x is multiplied first, one after the other; as `native` takes them.
    """
    if method == "native" and can_take(dy, positions):
        return native(dy, x, positions, starts, factors)
    x = product(x, factors)
    if method in ("native", "sampled"):
        return sampled(dy, x, positions, starts)
    return blocks(dy, x, positions, starts)
