"""Scores of a tensor's positions by its weights or gradients, and the positions where they are largest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from multiticket.mask import random
from multiticket.mask.names import masked_candidates
from multiticket.mask.quantised import is_quantised_model
from multiticket.mask.rule import MaskRule

Score = Callable[[torch.Tensor, MaskRule], torch.Tensor]


def magnitude(weight: torch.Tensor, rule: MaskRule) -> torch.Tensor:
    """|w|, fp32, in the weight's shape. Option ``which``: largest (the default) or smallest."""
    rule.only_options("which")
    which = rule.options.get("which", "largest")
    if which not in ("largest", "smallest"):
        raise ValueError(f"Option which must be 'largest' or 'smallest', not {which!r}.")
    return weight.float().abs() if which == "largest" else -weight.float().abs()


def principal(weight: torch.Tensor, rule: MaskRule) -> torch.Tensor:
    """Overlap of every position with the weight's top singular subspace, fp32 in [0, 1], in its shape.

    For W = U S V^T cut to the ``rank`` largest singular values (an option; by default a tenth of the smaller
    dimension), position (i, j) scores ||U^T e_i||^2 ||V^T e_j||^2: how much of a change of that one entry
    lies in the subspace. A vector is a matrix of one row, where this is w^2 / ||w||^2; a tensor with more
    dimensions is a stack of matrices. The question is that of arXiv 2511.08567, which chose positions where
    the cut reconstruction |U S V^T| is large; this measures the subspace without the singular values.
    """
    rule.only_options("rank")
    if weight.dim() > 2:
        return torch.stack([principal(matrix, rule) for matrix in weight])
    if weight.dim() < 2:
        return principal(weight.reshape(1, -1), rule).reshape(weight.shape)
    matrix = weight.float()
    smaller = min(matrix.shape)
    rank = rule.options.get("rank", math.ceil(smaller / 10))
    if type(rank) is not int or rank < 1:
        raise ValueError(f"Option rank must be a whole number of at least 1, not {rank!r}.")
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # The smaller side's vectors from its Gram matrix (fp64 for the squared condition), the others from those.
    gram = (wide @ wide.T).double()
    short = torch.linalg.eigh(gram).eigenvectors[:, -min(rank, smaller) :].float()
    long = torch.linalg.qr(wide.T @ short).Q
    overlap = short.square().sum(1)[:, None] * long.square().sum(1)[None, :]
    return overlap if wide is matrix else overlap.T


def off_principal(weight: torch.Tensor, rule: MaskRule) -> torch.Tensor:
    """Minus `principal`: the positions that the top singular subspace knows least."""
    return -principal(weight, rule)


WEIGHT_SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "principal": principal,
    "off-principal": off_principal,
}
"""Methods whose rule needs the base's weights as well. A new one is a function and a line here."""


def squared_gradients(model: torch.nn.Module, losses: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The diagonal of the empirical Fisher matrix: mean squared gradient of the losses, by tensor name.

    ``losses`` yields one scalar for each rollout (minus its log-probability, or its policy loss), each made
    when asked for; fp32 results of the tensors' shapes. For `Mask.from_scores(model, scores, density,
    MaskRule("fisher", density))`. Holds one dense fp32 copy of the model. Gradients and ``requires_grad`` of the
    parameters are left as they were. Raises ValueError where there is no loss, or a weight is quantised.
    """
    weights = masked_candidates(model)
    if is_quantised_model(model):
        raise ValueError("Quantised weights have no gradients; compute Fisher scores on the dense model.")
    required = {name: weight.requires_grad for name, weight in weights.items()}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    count = 0
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for loss in losses:
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient.float(), gradient.float())
            count += 1
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(required[name])
    if not count:
        raise ValueError("Fisher scores need at least one rollout's loss.")
    return {name: total / count for name, total in sums.items()}


def largest(
    name: str, scores: torch.Tensor, shape: tuple[int, ...], count: int, rule: MaskRule
) -> torch.Tensor:
    """Sorted flat positions of the ``count`` largest scores, int64; ties in the order of the seed's permutation."""
    if tuple(scores.shape) != tuple(shape):
        raise ValueError(
            f"The scores of {name} have shape {tuple(scores.shape)}; the tensor has {tuple(shape)}."
        )
    if rule.part:
        raise ValueError(f"A {rule.method} mask has part 0 only, not part {rule.part}.")
    flat = scores.detach().reshape(-1)
    if flat.isnan().any():
        raise ValueError(f"The scores of {name} contain NaN; compute them in fp32.")
    bound = flat.kthvalue(len(flat) - count + 1).values
    above = (flat > bound).nonzero().squeeze(1)
    tied = (flat == bound).nonzero().squeeze(1)
    key = random.tensor_key(rule.seed, name, shape, "ties")
    taken = random.positions(len(tied), 0, count - len(above), key, tied.device)
    return torch.cat([above, tied[taken]]).sort().values
