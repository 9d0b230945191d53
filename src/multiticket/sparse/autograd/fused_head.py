"""TRL's fused head over an attached weight: k gradients, never a (vocabulary, width) one.

TRL scores completions without whole logits, by an autograd function over ``lm_head.weight`` that it calls past the head
layer. Its backward pass allocates the weight's whole gradient in fp32. Here that backward is called for a block of the
vocabulary at a time: with the normaliser known, a block's gradient needs nothing of the others. Each block's weight
gradient is gathered at the mask's positions and dropped. The numbers are TRL's own.

On a CPU, for every arm, completions alone are scored, as TRL does on GPUs: elsewhere it scores prompts and padding too.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from multiticket.sparse.gradient.blocks import row_blocks

_TRL, _NAME, _COMPACT = "trl.trainer.utils", "_ChunkedLogProbFunction", "_use_triton"
HOST_CHUNK = 1 << 12
"""Words of the vocabulary that a CPU scores together. TRL's 32,768 suit a GPU; where torch does a kernel's work, five
to seven fp32 tensors of (4,096 tokens, chunk) are there at once, which are 3 GB for those and 0.4 GB for these."""


class SparseLogProbFunction(torch.autograd.Function):
    """TRL's ``ChunkedLogProbFunction`` with ``values`` (k,) in the place of the weight (vocabulary, width)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        values: Tensor,
        bias: Tensor | None,
        function: Any,
        dense: Tensor,
        positions: Tensor,
        starts: Tensor,
        *rest: Any,
    ) -> Any:
        ctx.function, ctx.positions, ctx.starts = function, positions, starts
        ctx.values_dtype = values.dtype
        return function.forward(ctx, hidden, dense, bias, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        hidden, dense, bias, targets, log_z, entropy = ctx.saved_tensors
        wide = hidden.float()  # so that what comes back is fp32, and blocks add up without rounding
        width = dense.shape[1]
        grad_hidden = torch.zeros_like(wide) if ctx.needs_input_grad[0] else None
        pieces, bias_pieces = [], []
        most = HOST_CHUNK if dense.device.type == "cpu" else None
        for row, end_row, begin, end in row_blocks(ctx.starts, width, dense.device, most):
            rows = slice(row, end_row)
            some_bias = None if bias is None else bias[rows]
            block = SimpleNamespace(
                saved_tensors=(wide, dense[rows].float(), some_bias, targets - row, log_z, entropy),
                compute_dtype=ctx.compute_dtype,
                chunk_size=end_row - row,
                kernel_args=ctx.kernel_args,
                needs_input_grad=(ctx.needs_input_grad[0], end > begin, ctx.needs_input_grad[2]),
            )
            of_hidden, of_rows, of_bias, *_ = ctx.function.backward(block, *grads)
            if grad_hidden is not None:
                grad_hidden += of_hidden
            if end > begin:
                inside = ctx.positions[begin:end].long() - row * width
                pieces.append(of_rows.reshape(-1).index_select(0, inside))
            bias_pieces.append(of_bias)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            torch.cat(pieces).to(ctx.values_dtype),
            torch.cat(bias_pieces) if ctx.needs_input_grad[2] else None,
            *[None] * (len(ctx.needs_input_grad) - 3),
        )


class _Head:
    """What stands in TRL's module for its function: the sparse one for attached weights, its own for others."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def apply(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
        if hidden.device.type == "cpu":
            targets, temperature, chunk, *others = rest
            rest = (targets, temperature, min(chunk, HOST_CHUNK), *others)
        masked = getattr(weight, "_masked_weight", None)
        if masked is None or not weight.requires_grad:
            return self.function.apply(hidden, weight, bias, *rest)
        return SparseLogProbFunction.apply(
            hidden,
            masked.values,
            bias,
            self.function,
            masked.fresh_dense(),
            masked.positions,
            masked.host_starts,
            *rest,
        )


def use_sparse_head() -> None:
    """Let TRL, if it is loaded and has its fused head where we know it, use ours for attached weights.

    Where it is elsewhere (another version of TRL), nothing is changed, and its head takes the general path: the same
    gradient, with a dense one for a moment.
    """
    module = sys.modules.get(_TRL)
    function = getattr(module, _NAME, None)
    if not isinstance(function, type) or not issubclass(function, torch.autograd.Function):
        return
    setattr(module, _NAME, _Head(function))
    compact = getattr(module, _COMPACT, None)
    if callable(compact):
        setattr(module, _COMPACT, lambda device: device.type == "cpu" or compact(device))
