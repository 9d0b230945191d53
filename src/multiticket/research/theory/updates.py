"""The geometry of an update: where the weights moved, in how many directions, and how these lie to those of the
weights.

For matrices W (m, n) before and W + D after training. Of tensors with one dimension only the counts and norms are
told; one with more than two counts as a matrix of its last dimension by all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multiticket.mask.structured import matrix
from multiticket.research.theory.spectrum import EffectiveRank, effective_rank

_CHUNK = 2**22


@dataclass
class Moved:
    """How much of some weights moved, and how far."""

    numel: int = 0
    moved: int = 0
    """Entries with another value."""
    visible: int = 0
    """Entries with another value once both are rounded to bf16."""
    above: int = 0
    """Moved entries with |d| > |w| / 256, where rounding to bf16 cannot hide them (2602.03839)."""
    squared: float = 0.0
    """||D||_F^2."""
    base_squared: float = 0.0
    """||W||_F^2."""

    def add(self, other: Moved) -> None:
        self.numel += other.numel
        self.moved += other.moved
        self.visible += other.visible
        self.above += other.above
        self.squared += other.squared
        self.base_squared += other.base_squared

    @property
    def distance(self) -> float:
        """||D||_F."""
        return math.sqrt(self.squared)

    @property
    def relative(self) -> float:
        """||D||_F / ||W||_F; infinite where the weights were zero."""
        return math.sqrt(self.squared / self.base_squared) if self.base_squared else math.inf


def moved(before: Tensor, after: Tensor) -> Moved:
    """Of one tensor, any shape and floating dtype, in chunks."""
    found = Moved(before.numel())
    for old, new in zip(before.reshape(-1).split(_CHUNK), after.reshape(-1).split(_CHUNK), strict=True):
        delta = new.double() - old.double()
        changed = delta != 0
        found.moved += int(changed.sum())
        found.visible += int((old.to(torch.bfloat16) != new.to(torch.bfloat16)).sum())
        found.above += int((changed & (delta.abs() > old.double().abs() / 256)).sum())
        found.squared += float(delta.square().sum())
        found.base_squared += float(old.double().square().sum())
    return found


@dataclass(frozen=True)
class MatrixUpdate:
    """The directions of one matrix's update."""

    rows: int
    columns: int
    numerical_rank: int
    """Singular values of D above what rounding the weights leaves (`rounding_level`)."""
    effective: EffectiveRank
    """Of the squared singular values of D."""
    shuffled: EffectiveRank
    """The same of D's entries at shuffled positions: what an update without directions has, as sparse and as uneven."""
    top: int
    """r, the number of principal directions of W that are looked at."""
    left: float
    """||U_r^T D||_F^2 / ||D||_F^2 with U_r (m, r) the leading left singular vectors of W; by chance r / m."""
    right: float
    """||D V_r||_F^2 / ||D||_F^2 with V_r (n, r); by chance r / n."""
    both: float
    """||U_r^T D V_r||_F^2 / ||D||_F^2; by chance r^2 / (m n)."""


def matrix_update(before: Tensor, after: Tensor, seed: int = 0, share: float = 0.1) -> MatrixUpdate | None:
    """Of a tensor with at least two dimensions; None where it has fewer, or did not move.

    Args:
        share: r is this share of the smaller side, rounded up (a tenth, as in `mask.scores.principal`).
    """
    if before.dim() < 2:
        return None
    rows, columns = matrix(tuple(before.shape))
    old = before.reshape(rows, columns).double()
    delta = after.reshape(rows, columns).double() - old
    total = float(delta.square().sum())
    if not total:
        return None
    values = torch.linalg.svdvals(delta)
    top = math.ceil(share * min(rows, columns))
    left_vectors, _, right_vectors = torch.linalg.svd(old, full_matrices=False)
    from_left = left_vectors[:, :top].T @ delta
    from_right = delta @ right_vectors[:top].T
    order = torch.randperm(delta.numel(), generator=torch.Generator().manual_seed(seed))
    shuffled = delta.cpu().reshape(-1)[order].reshape(rows, columns)
    return MatrixUpdate(
        rows=rows,
        columns=columns,
        numerical_rank=int((values > rounding_level(before, after, values)).sum()),
        effective=effective_rank(values.square()),
        shuffled=effective_rank(torch.linalg.svdvals(shuffled).square()),
        top=top,
        left=float(from_left.square().sum()) / total,
        right=float(from_right.square().sum()) / total,
        both=float((from_left @ right_vectors[:top].T).square().sum()) / total,
    )


def rounding_level(before: Tensor, after: Tensor, values: Tensor) -> float:
    """Singular values of an update up to this may be rounding: of the weights that it is a difference of, or of
    itself.

    Weights in a dtype of precision eps are off by up to eps / 2 of themselves each; a matrix of independent errors
    of size s has a norm of about s (sqrt m + sqrt n). The other part is the usual max(m, n) eps sigma_1, of fp64.
    """
    rows, columns = matrix(tuple(before.shape))
    size = max(
        float(weight.double().square().mean().sqrt()) * torch.finfo(weight.dtype).eps / 2
        for weight in (before, after)
    )
    noise = size * (math.sqrt(rows) + math.sqrt(columns))
    return max(noise, max(rows, columns) * torch.finfo(torch.float64).eps * float(values[0]))


@dataclass(frozen=True)
class TensorUpdate:
    """One tensor's update."""

    moved: Moved
    matrix: MatrixUpdate | None


def tensor_updates(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], seed: int = 0
) -> dict[str, TensorUpdate]:
    """Every tensor's update, by name.

    Raises:
        ValueError: the two have other tensors, or other shapes.
    """
    if set(before) != set(after):
        odd = sorted(set(before) ^ set(after))[0]
        raise ValueError(f"Only one of the two models has a tensor {odd}: compare states of one base.")
    found = {}
    for name, old in before.items():
        new = after[name]
        if old.shape != new.shape:
            raise ValueError(
                f"{name} has shapes {tuple(old.shape)} and {tuple(new.shape)}: compare one base."
            )
        found[name] = TensorUpdate(
            moved(old.detach(), new.detach()), matrix_update(old.detach(), new.detach(), seed)
        )
    return found
