"""A layer's input that need not be kept, because it is a product of tensors that autograd keeps anyway.

A gated block computes ``down(act(gate) * up)``, and the product's own backward pass needs both factors. A masked layer
that kept the product too would hold the widest activation of the block a third time; instead it keeps references to
the factors and multiplies again, the same bits. At 1 % of a 36M Qwen2 that is an eighth of a step's memory.

An RMS norm in fp32 computes ``weight * (x * rsqrt(...))``, and its own backward pass needs x and the root. Several
layers read its output, and each would multiply again: so these factors are taken only where the kernel multiplies as it
reads, for next to nothing. That is another twelfth of the memory, and memory that is not touched takes no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from multiticket.sparse.gradient import native
from multiticket.sparse.gradient.product import product

_anyway: ContextVar[bool] = ContextVar("factors are taken under saved-tensor hooks", default=False)

Factors = tuple[Tensor, ...]
"""Two tensors of the shape of their product (..., features); or one of its shape, one (..., 1) and one (features,)."""


def factors(x: Tensor, scaled: bool = False, compare: bool | None = None) -> Factors | None:
    """Tensors that autograd keeps already and whose product, one after the other, is ``x``; None if unknown.

    ``grad_fn`` says how x was made, not what it holds now: others may have written to it since (clamping, steering).
    A version above 0 shows most of that, but no write through ``.data`` or another library; so the factors are
    multiplied and compared with x, entry for entry. What is written to x later is not seen: the gradient is that of the
    product that the layer read.

    Not under hooks on saved tensors (non-reentrant checkpointing, offloading), which asking would set off.

    Args:
        x: (..., features), as it comes from the operation that made it.
        scaled: take the three factors of an fp32 norm's output too.
        compare: whether to compare; None: on a CPU alone, since on an accelerator it waits for the device.
    """
    if torch.compiler.is_compiling() or x.grad_fn is None or x._version:
        return None
    found = _factors_by_history(x, scaled)
    if compare is None:
        compare = x.device.type == "cpu"
    compare = compare and not x.is_meta and not _anyway.get()
    return found if found is None or not compare or _is_product(x, found) else None


def _is_product(x: Tensor, factors: Factors) -> bool:
    told = native.is_product(x.detach(), factors)
    return torch.equal(product(factors[0], factors[1:]), x) if told is None else told


def _factors_by_history(x: Tensor, scaled: bool) -> Factors | None:
    node: Any = x.grad_fn
    name = node.name()
    if name == "MulBackward0":
        if _hooked():
            return None
        a, b = _saved(node)
        if a is not None and b is not None:
            alike = a.shape == b.shape == x.shape and a.dtype == b.dtype == x.dtype
            return (a.detach(), b.detach()) if alike else None
        frozen = a if a is not None else b
        return _factors_of_norm(x, frozen, node.next_functions[int(a is not None)][0]) if scaled else None
    if scaled and name == "ScaleByMaskedVectorBackward" and not _hooked():
        return _factors_of_norm(x, node.saved_tensors[0], node.next_functions[0][0])
    return None


def _factors_of_norm(x: Tensor, weight: Tensor | None, inner: Any) -> Factors | None:
    """Of x = weight * (a * b), with ``inner`` the node that made the bracket: what it scales, the root, the weight."""
    if weight is None or inner is None or inner.name() != "MulBackward0":
        return None
    a, b = _saved(inner)
    if a is None or b is None or x.dim() < 2:
        return None
    rooted, root = (a, b) if a.shape == x.shape else (b, a)
    fits = rooted.shape == x.shape and root.shape == (*x.shape[:-1], 1) and weight.shape == x.shape[-1:]
    if not fits or any(part.dtype != torch.float32 for part in (x, rooted, root, weight)):
        return None
    return rooted.detach(), root.detach(), weight.detach()


def _saved(node: Any) -> tuple[Tensor | None, Tensor | None]:
    return node._saved_self, node._saved_other


@contextmanager
def factors_under_hooks() -> Iterator[None]:
    """Take factors under hooks on saved tensors too, which must give back what they were given: for counting bytes."""
    token = _anyway.set(True)
    try:
        yield
    finally:
        _anyway.reset(token)


def _hooked() -> bool:
    if _anyway.get():
        return False
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None
