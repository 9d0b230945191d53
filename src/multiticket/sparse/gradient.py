"""The gradient of k chosen entries of a weight, without keeping the dense gradient.

For a linear layer ``y = x W^T``, the gradient of entry (r, c) of W is the dot product of column r of the output
gradient with column c of the input: ``sum_t dy[t, r] * x[t, c]``. Two ways to compute the k that are wanted, and a
plain reference that both are tested against:

- ``sampled``: k dot products, ``torch.sparse.sampled_addmm``. Two transposes and k * tokens multiplications.
- ``blocks``: the dense product a block of rows at a time, each gathered and dropped.

``choose_method`` picks by the shapes' measured crossover; both are registered as one ``torch.library`` operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ENTRIES = 1 << 22
"""Entries of dW that the ``blocks`` method holds at a time: 16 MiB in fp32."""


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


def embedding_reference(dy: Tensor, tokens: Tensor, positions: Tensor, rows: int, padding_idx: int) -> Tensor:
    """The definition for an embedding of ``rows`` rows: scatter-add into the dense gradient, then gather.

    Args:
        dy: gradient of the layer's output (tokens, width).
        tokens: the rows that were looked up (tokens,).
        positions: flat positions in the weight (k,).
        padding_idx: the row that takes no gradient, -1 for none.

    Returns:
        (k,) in the dtype of ``dy``.
    """
    dense = dy.new_zeros(rows, dy.shape[1]).index_add_(0, tokens, dy)
    if padding_idx >= 0:
        dense[padding_idx] = 0
    return dense.reshape(-1)[positions.long()]


def row_starts(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Where each row's entries start in sorted ``positions``: (rows + 1,), the row pointers of a CSR matrix."""
    edges = torch.arange(rows + 1, device=positions.device, dtype=torch.int64) * columns
    return torch.searchsorted(positions.long(), edges).to(positions.dtype)


def choose_method(device: torch.device, rows: int, columns: int, k: int) -> str:
    """``sampled`` or ``blocks``, whichever is the faster for a weight (rows, columns) with k entries wanted.

    The sampled product transposes both operands, the dense one multiplies them: the first is linear in
    rows + columns, the second in rows * columns. Measured on two CPU cores in fp32, the sampled product takes 0.3 to
    0.6 of the dense product's time at 512 x 512 and 2048 x 512, and 1.7 of it at 128 x 128.
    """
    pays = rows * columns >= 200 * (rows + columns)
    return "sampled" if device.type == "cpu" and pays and k <= 0.05 * rows * columns else "blocks"


def _sampled(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
    rows, columns = dy.shape[1], x.shape[1]
    dtype = dy.dtype if dy.dtype == torch.float64 else torch.float32
    pattern = torch.sparse_csr_tensor(
        starts,
        positions % columns,
        torch.zeros(positions.numel(), dtype=dtype, device=dy.device),
        (rows, columns),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(pattern, dy.to(dtype).T, x.to(dtype), beta=0.0).values()


def _blocks(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
    rows, columns = dy.shape[1], x.shape[1]
    per_block = max(1, BLOCK_ENTRIES // columns)
    first_rows = list(range(0, rows, per_block))
    bounds = starts[torch.tensor([*first_rows, rows], device=starts.device)].tolist()
    pieces = []
    for row, begin, end in zip(first_rows, bounds, bounds[1:], strict=False):
        block = dy[:, row : row + per_block].T @ x
        pieces.append(block.view(-1).index_select(0, positions[begin:end].long() - row * columns))
    return torch.cat(pieces)


@torch.library.custom_op("multiticket::linear_values_grad", mutates_args=())
def linear_values_grad(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor, method: str) -> Tensor:
    """Gradient of a linear weight's entries at ``positions``.

    Args:
        dy: (tokens, out_features).
        x: (tokens, in_features), the dtype of ``dy``.
        positions: sorted flat positions (k,), int32 or int64.
        starts: ``row_starts`` of the positions (out_features + 1,).
        method: ``sampled`` or ``blocks``.

    Returns:
        (k,), fp32, or fp64 where ``dy`` is.
    """
    found = (_sampled if method == "sampled" else _blocks)(dy, x, positions, starts)
    return found.to(torch.promote_types(torch.float32, dy.dtype))


@linear_values_grad.register_fake
def _(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor, method: str) -> Tensor:
    return dy.new_empty(positions.shape, dtype=torch.promote_types(torch.float32, dy.dtype))


@torch.library.custom_op("multiticket::embedding_values_grad", mutates_args=())
def embedding_values_grad(
    dy: Tensor, tokens: Tensor, positions: Tensor, starts: Tensor, padding_idx: int
) -> Tensor:
    """Gradient of an embedding's entries at ``positions``; memory grows with the rows that occurred, not all rows.

    Args:
        dy: (tokens, width).
        tokens: rows looked up (tokens,), int32 or int64.
        positions: sorted flat positions (k,).
        starts: ``row_starts`` of the positions (rows + 1,).
        padding_idx: the row that takes no gradient, -1 for none.

    Returns:
        (k,), fp32, or fp64 where ``dy`` is.
    """
    dtype = torch.promote_types(torch.float32, dy.dtype)
    grad = torch.zeros(positions.shape, dtype=dtype, device=dy.device)
    occurred, inverse = torch.unique(tokens, return_inverse=True)
    summed = torch.zeros(occurred.numel(), dy.shape[1], dtype=dtype, device=dy.device)
    summed.index_add_(0, inverse, dy.to(dtype))
    if padding_idx >= 0:
        summed[occurred == padding_idx] = 0
    begin = starts[occurred].long()
    count = starts[occurred + 1].long() - begin
    row = torch.repeat_interleave(torch.arange(occurred.numel(), device=dy.device), count)
    within = torch.arange(row.numel(), device=dy.device) - (count.cumsum(0) - count)[row]
    entry = begin[row] + within
    grad[entry] = summed[row, positions[entry].long() % dy.shape[1]]
    return grad


@embedding_values_grad.register_fake
def _(dy: Tensor, tokens: Tensor, positions: Tensor, starts: Tensor, padding_idx: int) -> Tensor:
    return dy.new_empty(positions.shape, dtype=torch.promote_types(torch.float32, dy.dtype))
