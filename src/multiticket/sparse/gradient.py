"""The gradient of k chosen entries of a weight, without keeping the dense gradient.

For a linear layer ``y = x W^T``, the gradient of entry (r, c) of W is the dot product of column r of the output
gradient with column c of the input: ``sum_t dy[t, r] * x[t, c]``. Ways to compute the k that are wanted, and a plain
reference that all are tested against:

- ``sampled`` (CPU): k dot products, ``torch.sparse.sampled_addmm``, over ``TOKENS`` tokens at a time, so that what it
  transposes and reads again stays in the cache. Any density; bf16 and fp16 are cast to fp32 as they come.
- ``blocks``: the dense product a block of rows at a time, each gathered and dropped.
- ``columns``, ``rows``: the dense product of the few columns or rows that a mask of whole ones has (`lines`).
- ``triton`` (CUDA): k dot products in one kernel (`triton_kernel`).

``choose_method`` picks by measured crossover. Each is registered as a ``torch.library`` operator where a compiler could
not look through it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

METHODS = ("sampled", "blocks", "triton")
"""What ``attach`` takes as its gradient method; ``columns`` and ``rows`` follow from the mask."""
TOKENS = 128
"""Tokens that the ``sampled`` method takes at a time: (128, 2048) in fp32 is 1 MiB."""
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

    On a CPU by the crossover that ``python benchmarks/gradient_paths.py`` measured. On a GPU, where nothing has been
    measured yet, the dense product, which is right everywhere.
    """
    if device.type != "cpu" or k > SAMPLED_UP_TO * rows * columns:
        return "blocks"
    return "sampled" if rows * columns >= SAMPLED_FROM else "blocks"


SAMPLED_UP_TO = 0.05
"""Largest density at which sampling beats the dense product."""
SAMPLED_FROM = 128 * 128
"""Entries of the smallest weight for which it does."""


def _sampled(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
    rows, columns = dy.shape[1], x.shape[1]
    dtype = torch.promote_types(torch.float32, dy.dtype)
    found = torch.zeros(positions.numel(), dtype=dtype, device=dy.device)
    column = positions % columns
    for first in range(0, len(dy), TOKENS):
        pattern = torch.sparse_csr_tensor(starts, column, found, (rows, columns), check_invariants=False)
        some_dy, some_x = dy[first : first + TOKENS].to(dtype), x[first : first + TOKENS].to(dtype)
        found = torch.sparse.sampled_addmm(pattern, some_dy.T, some_x).values()
    return found


def _blocks(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
    rows, columns = dy.shape[1], x.shape[1]
    per_block = max(1, BLOCK_ENTRIES // columns)
    first_rows = list(range(0, rows, per_block))
    bounds = starts[torch.tensor([*first_rows, rows], device=starts.device)].tolist()
    pieces = []
    for row, begin, end in zip(first_rows, bounds, bounds[1:], strict=False):
        block = product(dy[:, row : row + per_block], x)
        pieces.append(block.view(-1).index_select(0, positions[begin:end].long() - row * columns))
    return torch.cat(pieces)


def product(dy: Tensor, x: Tensor) -> Tensor:
    """``dy^T x`` (out, in), accumulated in fp32 at least.

    On a CPU the result is fp32 too, and bf16 and fp16 operands are cast some tokens at a time; on a GPU the product is
    rounded once to the operands' dtype, as in dense training.
    """
    if dy.dtype.itemsize >= 4 or dy.device.type != "cpu":
        return dy.T @ x
    total = torch.zeros(dy.shape[1], x.shape[1])
    for first in range(0, len(dy), 8 * TOKENS):
        some = slice(first, first + 8 * TOKENS)
        total.addmm_(dy[some].float().T, x[some].float())
    return total


def _triton(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
    from multiticket.sparse.triton_kernel import sampled_product  # needs Triton, which only CUDA builds bring

    return sampled_product(dy, x, positions)


_PATHS = {"sampled": _sampled, "blocks": _blocks, "triton": _triton}


@torch.library.custom_op("multiticket::linear_values_grad", mutates_args=())
def linear_values_grad(dy: Tensor, x: Tensor, positions: Tensor, starts: Tensor, method: str) -> Tensor:
    """Gradient of a linear weight's entries at ``positions``.

    Args:
        dy: (tokens, out_features).
        x: (tokens, in_features), the dtype of ``dy``.
        positions: sorted flat positions (k,), int32 or int64.
        starts: ``row_starts`` of the positions (out_features + 1,).
        method: one of ``METHODS``.

    Returns:
        (k,), fp32, or fp64 where ``dy`` is.
    """
    found = _PATHS[method](dy, x, positions, starts)
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
