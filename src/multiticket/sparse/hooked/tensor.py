"""One masked tensor: where it lies, which entries train, and the leaves through which autograd reaches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.sparse.gradient.crop import Crop, crop, row_starts
from multiticket.sparse.surgery import DETACH_FIRST, MOST_KEPT


class MaskedTensor:
    """A frozen weight, its positions, and its two leaves.

    The *alias* is a leaf over the weight's own memory: modules read it in the weight's place, so that their forward is
    torch's own. The *leaf* holds the k values, for functions that compute only k gradients.
    """

    values_of: Any
    """The ``Values`` that hold its values."""
    slot: int
    """Its place among those tensors."""
    begin: int
    end: int
    """Where its values lie among all."""
    leaf: Tensor
    """Its values (k,) as a leaf, which receives a gradient and nothing else."""
    alias: Tensor
    """The weight as a leaf: the same memory, and a gradient that a hook gathers."""
    known: nn.Parameter
    """The frozen weight as it was when the alias was made."""
    address: int
    """Where its memory was."""

    def __init__(self, name: str, places: Sequence[tuple[nn.Module, str]], positions: Tensor) -> None:
        self.name = name
        self.places = places
        self.owner, self.attribute = places[0]
        self.shape = self.shape_now()
        wide = torch.int32 if self.shape.numel() < 2**31 else torch.int64
        positions = positions.to(wide)
        self._positions = positions.to(self.dense.device)
        self._crop: Crop | None = None
        if positions.device != self._positions.device and self.dense.is_meta and not self.is_vector:
            found = crop(positions, row_starts(positions, *self.shape), *self.shape)
            self._crop = found.along(self._positions, self.starts)
        self._host_starts: Tensor | None = None
        self.whole_original: Tensor | None = None
        """All of a small weight as it was before somebody got hold of its memory to write."""
        self.touched = False
        """Whether somebody got hold of it since it was last looked at."""
        self.version = 0
        self.when_replaced: Callable[[], None] = lambda: None

    def note(self) -> None:
        """Remember how the weight looks now, so that a later write by others shows."""
        self.touched = False
        if self.in_memory:
            self.version = self.dense._version - self.values_of.told

    def given_away(self) -> Tensor:
        """The weight's memory for somebody who may write to it past autograd: a small weight is copied before."""
        dense = self.dense
        self.touched = self.values_of.touched = True
        if self.whole_original is None and dense.numel() <= MOST_KEPT:
            self.whole_original = dense.detach().clone()
        return dense.data

    def replace_content(self, content: Tensor) -> None:
        """``weight.data = content``, by somebody who has the alias."""
        if content.shape != self.shape:
            raise RuntimeError(
                f"{self.name} has shape {tuple(self.shape)}, the new content {tuple(content.shape)}; {DETACH_FIRST}"
            )
        self.given_away()
        self.dense.data = content
        self.when_replaced()

    @property
    def dense(self) -> nn.Parameter:
        """The frozen weight, looked up each time: wrappers replace parameter objects."""
        dense = self.owner._parameters.get(self.attribute)
        if dense is None:
            raise RuntimeError(
                f"{self.name} is no parameter of its layer any more (pruned? weight-normed?); {DETACH_FIRST}"
            )
        return dense

    in_memory = True
    """Whether the weight's entries lie in memory, where values are written and an alias can look; not if quantised."""

    def shape_now(self) -> torch.Size:
        """The weight's shape; it may have been replaced."""
        return self.dense.shape

    def address_now(self) -> int:
        """Where its memory is."""
        return self.dense.data_ptr()

    @property
    def dtype(self) -> torch.dtype:
        """The weight's dtype, to which values are rounded."""
        return self.dense.dtype

    @property
    def positions(self) -> Tensor:
        """Sorted flat positions (k,), int32 where they fit, on the weight's device."""
        if self._positions.device != self.dense.device and not self.dense.is_meta:
            self._positions = self._positions.to(self.dense.device)
        return self._positions

    @property
    def is_vector(self) -> bool:
        """Whether its gradient is so small that it may stay until the backward pass ends: a norm's weight, a bias."""
        return len(self.shape) < 2

    def taken(self) -> Tensor:
        """What the weight holds at the positions (k,), in its own dtype."""
        return self.dense.detach().take(self.positions.long())

    def make_leaf(self, values: Tensor) -> None:
        """Make the leaf: a view of the memory of ``values`` (n,)."""
        self.leaf = values.detach()[self.begin : self.end].requires_grad_(True)
        mine, begin, end = self.values_of, self.begin, self.end

        def hook(leaf: Tensor) -> None:
            if leaf.grad is not None:
                mine.extra.append((begin, end, leaf.grad))
                leaf.grad = None
                mine.collector.noticed()

        self.leaf.register_post_accumulate_grad_hook(hook)

    @property
    def crop(self) -> Crop:
        """The positions within the rows and columns that they touch, of a matrix."""
        if self._crop is None or self._crop.positions.device != self.positions.device:
            self._crop = crop(self.positions, self.starts, *self.shape)
        return self._crop

    @property
    def starts(self) -> Tensor:
        """``row_starts`` of the positions, of a matrix."""
        return row_starts(self.positions, *self.shape)

    # What TRL's fused head asks of a weight

    @property
    def values(self) -> Tensor:
        """The leaf that receives the gradient."""
        return self.leaf

    def fresh_dense(self) -> Tensor:
        """The weight, without history."""
        return self.dense.detach()

    @property
    def host_starts(self) -> Tensor:
        """``starts`` in the host's memory."""
        if self._host_starts is None:
            self._host_starts = self.starts.cpu()
        return self._host_starts
