"""A mask: which positions of which tensors are trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from multiticket.mask.names import candidate_shapes, frozen_by_choice, in_scope, masked_candidates
from multiticket.mask.positions import Device, Positions, Shapes, stored
from multiticket.mask.quantised import dense_reader
from multiticket.mask.rule import MaskRule
from multiticket.mask.scores import WEIGHT_SCORES, largest
from multiticket.mask.selectors import SELECTORS


class Mask:
    """Chosen positions of a model's tensors. Holds no reference to the model, and for a rule no positions.

    Make one with `random`, `from_rule`, `from_scores` or `from_indices`.
    """

    def __init__(self, rule: MaskRule, shapes: Shapes, chosen: Mapping[str, Positions]) -> None:
        """``shapes``: every tensor in scope, in the model's order; ``chosen``: positions, by name."""
        assert set(chosen) <= set(shapes)
        self.rule = rule
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._chosen = {name: chosen[name] for name in shapes if name in chosen and chosen[name].count}
        if not self._chosen:
            raise ValueError(_why_empty(rule, self._shapes))

    @classmethod
    def random(
        cls, model: torch.nn.Module, density: float, seed: int = 0, part: int = 0, scope: str = "all"
    ) -> Mask:
        """int(n * density) positions of every tensor of n entries, uniformly at random (see `random.py`).

        ``model`` may be on any device, ``meta`` included. Masks of one seed nest as density shrinks; its
        parts are disjoint and tile every tensor. Tensors that are frozen (``requires_grad`` False) where others
        are not stay out of it, unless ``scope`` names them. Raises ValueError for bad arguments or an empty mask.
        """
        return cls.from_rule(model, MaskRule("random", density, seed, part, scope))

    @classmethod
    def from_rule(cls, model: torch.nn.Module, rule: MaskRule) -> Mask:
        """The mask that ``rule`` names on ``model``. Raises ValueError for an unknown method.

        Methods that look at weights (magnitude, principal, off-principal) read the model's, one tensor at a
        time, and the mask keeps the positions they chose; all others need names and shapes alone.
        """
        if rule.method not in WEIGHT_SCORES:
            return cls.from_shapes(_offered(model, rule), rule)
        score, weight = WEIGHT_SCORES[rule.method], dense_reader(model, masked_candidates(model))
        return cls._from_ranking(model, lambda name: score(weight(name), rule), rule)

    @classmethod
    def from_scores(
        cls,
        model: torch.nn.Module,
        scores: Mapping[str, torch.Tensor] | Callable[[str], torch.Tensor],
        density: float,
        rule: MaskRule | None = None,
    ) -> Mask:
        """The int(n * density) positions of every tensor that have the largest scores.

        ``scores[name]``, or ``scores(name)`` where all at once would not fit, has the tensor's shape and any
        real dtype. Equal scores are ordered at random by the rule's seed. ``rule`` (default: method ``scores``)
        says where the scores came from, and its scope which tensors are meant. Raises ValueError for a
        missing or misshapen score, or NaN.
        """
        rule = rule or MaskRule("scores", density)
        if rule.density != density:
            raise ValueError(f"The density {density} and the rule's density {rule.density} differ; give one.")
        _refuse_rule_method(rule)
        return cls._from_ranking(model, scores if callable(scores) else _looked_up(scores), rule)

    @classmethod
    def _from_ranking(
        cls, model: torch.nn.Module, score: Callable[[str], torch.Tensor], rule: MaskRule
    ) -> Mask:
        shapes = _scoped(_offered(model, rule), rule.scope)
        chosen = {}
        for name, shape in shapes.items():
            count = int(math.prod(shape) * rule.share)
            if count:
                chosen[name] = stored(largest(name, score(name), shape, count, rule))
        return cls(rule, shapes, chosen)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], rule: MaskRule) -> Mask:
        """`from_rule` for a model of which only the tensors' names and shapes are known."""
        if rule.method not in SELECTORS:
            known = ", ".join([*SELECTORS, *WEIGHT_SCORES])
            raise ValueError(
                f"There is no rule that makes a mask by method {rule.method!r}; there are {known}."
            )
        covered = _scoped(shapes, rule.scope)
        return cls(rule, covered, SELECTORS[rule.method](covered, rule))

    @classmethod
    def from_indices(
        cls, model: torch.nn.Module, indices: Mapping[str, torch.Tensor], rule: MaskRule | None = None
    ) -> Mask:
        """Exactly the given flat row-major positions, by tensor name; order and repetition do not matter.

        ``rule`` says where they came from (default: method ``indices``). Raises ValueError for an unknown
        name or a position outside its tensor.
        """
        rule = rule or MaskRule("indices")
        _refuse_rule_method(rule)
        shapes = _scoped(candidate_shapes(model), rule.scope)
        chosen = {}
        for name, flat in indices.items():
            if name not in shapes:
                raise ValueError(f"The model has no floating-point parameter {name!r} to mask.")
            chosen[name] = stored(_checked_positions(name, flat, math.prod(shapes[name])))
        return cls(rule, shapes, chosen)

    @property
    def names(self) -> list[str]:
        """Tensors with at least one chosen position, in the model's order."""
        return list(self._chosen)

    @property
    def shapes(self) -> Shapes:
        """Every tensor in scope with its shape, also those without a chosen position, in the model's order."""
        return dict(self._shapes)

    @property
    def nnz(self) -> int:
        """Number of chosen positions."""
        return sum(positions.count for positions in self._chosen.values())

    @property
    def numel(self) -> int:
        """Number of entries of all tensors in scope."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    @property
    def density(self) -> float:
        """nnz / numel; a little below the rule's density, since every tensor rounds down."""
        return self.nnz / self.numel

    @property
    def follows_rule(self) -> bool:
        """Whether rule, names and shapes alone give the positions; otherwise the mask keeps them."""
        return self.rule.method in SELECTORS

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self._shapes[name]

    def count(self, name: str) -> int:
        """Number of chosen positions of one tensor; 0 for a tensor without any."""
        return self._chosen[name].count if name in self._chosen else 0

    def indices(self, name: str, device: Device = "cpu") -> torch.Tensor:
        """The chosen flat row-major positions of one tensor: int64, sorted, unique, shape (count(name),)."""
        if name not in self._chosen:
            return torch.empty(0, dtype=torch.int64, device=device)
        flat = self._chosen[name].make(device)
        assert flat.shape == (self.count(name),)
        return flat

    def without(self, names: Collection[str]) -> Mask:
        """The mask that the same rule makes where the tensors ``names`` are not there; chosen positions stay."""
        shapes = {name: shape for name, shape in self._shapes.items() if name not in names}
        if self.follows_rule:
            return Mask.from_shapes(shapes, self.rule)
        return Mask(self.rule, shapes, {n: flat for n, flat in self._chosen.items() if n not in names})

    def __repr__(self) -> str:
        return f"Mask({self.rule.method}, nnz={self.nnz}, numel={self.numel}, tensors={len(self._chosen)})"


def _offered(model: torch.nn.Module, rule: MaskRule) -> Shapes:
    """The tensors that a rule may choose from: all but the frozen ones, which a scope must name."""
    shapes = candidate_shapes(model)
    frozen = frozen_by_choice(model) if rule.scope == "all" else ()
    return {name: shape for name, shape in shapes.items() if name not in frozen}


def _scoped(shapes: Mapping[str, tuple[int, ...]], scope: str) -> Shapes:
    covered = {name: tuple(shape) for name, shape in shapes.items() if in_scope(name, scope)}
    if not covered:
        raise ValueError(
            f"The scope {scope!r} covers none of the model's {len(shapes)} floating-point tensors."
        )
    return covered


def _refuse_rule_method(rule: MaskRule) -> None:
    """Positions that are given must not go by the name of a method that would choose others."""
    if rule.method in SELECTORS:
        raise ValueError(
            f"Given positions cannot be called a {rule.method} mask; use Mask.from_rule for that."
        )


def _looked_up(scores: Mapping[str, torch.Tensor]) -> Callable[[str], torch.Tensor]:
    def score(name: str) -> torch.Tensor:
        if name not in scores:
            raise ValueError(f"There are no scores for {name}; give them, or a rule whose scope excludes it.")
        return scores[name]

    return score


def _checked_positions(name: str, flat: Any, numel: int) -> torch.Tensor:
    flat = torch.as_tensor(flat)
    if flat.is_floating_point() or flat.is_complex() or flat.dtype == torch.bool or flat.dim() != 1:
        raise ValueError(f"Positions of {name} must be a list of whole numbers (flat, row-major).")
    flat = flat.to(torch.int64).unique(sorted=True)
    if flat.numel() and (int(flat[0]) < 0 or int(flat[-1]) >= numel):
        raise ValueError(f"Positions of {name} must lie between 0 and {numel - 1}.")
    return flat


def _why_empty(rule: MaskRule, shapes: Shapes) -> str:
    if rule.density is None:
        return "The mask would be empty: no position was given."
    most = max((math.prod(shape) for shape in shapes.values()), default=0)
    return (
        f"The mask would be empty: at density {rule.density} not even the largest tensor "
        f"({most} entries) gets a position; raise the density."
    )
