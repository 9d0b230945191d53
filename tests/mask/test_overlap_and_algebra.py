"""What masks share, and masks made of masks."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiticket.mask import (
    Mask,
    MaskRule,
    complement_count,
    difference,
    intersection,
    overlap,
    overlap_matrix,
    union,
)

SHAPES = {"a": (30, 20), "b": (500,), "c": (3, 10, 10)}


def of(positions: dict[str, set[int]]) -> Mask:
    model = torch.nn.Module()
    for name, shape in SHAPES.items():
        model.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))
    return Mask.from_indices(
        model, {name: torch.tensor(sorted(p), dtype=torch.int64) for name, p in positions.items()}
    )


def sets(mask: Mask) -> dict[str, set[int]]:
    return {name: set(mask.indices(name).tolist()) for name in SHAPES}


positions = st.fixed_dictionaries({name: st.sets(st.integers(0, 20), min_size=1) for name in SHAPES})


@settings(max_examples=60, deadline=None)
@given(st.lists(positions, min_size=2, max_size=4))
def test_algebra_is_that_of_sets(given_sets: list[dict[str, set[int]]]) -> None:
    masks = [of(each) for each in given_sets]
    for operation, on_sets in (
        (union, set.union),
        (intersection, set.intersection),
        (difference, set.difference),
    ):
        expected = {name: on_sets(*(each[name] for each in given_sets)) for name in SHAPES}
        if not any(expected.values()):
            with pytest.raises(ValueError, match="would be empty"):
                operation(*masks)
            continue
        found = operation(*masks)
        assert sets(found) == expected
        assert found.numel == masks[0].numel
        assert found.rule.method == operation.__name__
    assert complement_count(masks[0]) == 1400 - masks[0].nnz


@settings(max_examples=60, deadline=None)
@given(positions, positions)
def test_overlap_counts_as_sets_do(one: dict[str, set[int]], other: dict[str, set[int]]) -> None:
    found = overlap(of(one), of(other))
    shared = sum(len(one[name] & other[name]) for name in SHAPES)
    together = sum(len(one[name] | other[name]) for name in SHAPES)
    assert (found.intersection, found.union) == (shared, together)
    assert found.jaccard == shared / together
    assert found.expected_intersection == pytest.approx(
        sum(len(one[n]) * len(other[n]) / math.prod(SHAPES[n]) for n in SHAPES)
    )
    assert {name: o.intersection for name, o in found.tensors.items()} == {
        n: len(one[n] & other[n]) for n in SHAPES
    }


def test_mean_jaccard_of_twenty_masks_is_that_of_independence() -> None:
    """190 pairs at p = 0.01: the mean Jaccard index is p / (2 - p) within its standard error (times three)."""
    shapes = {"embed": (3000, 100), "up": (1000, 150), "norm": (900,)}
    masks = [Mask.from_shapes(shapes, MaskRule("random", 0.01, seed)) for seed in range(20)]
    matrix = overlap_matrix(masks)
    pairs = [matrix[i][j] for i, j in combinations(range(20), 2)]
    mean = sum(pair.jaccard for pair in pairs) / len(pairs)
    deviation = math.sqrt(sum((pair.jaccard - mean) ** 2 for pair in pairs) / (len(pairs) - 1))
    assert abs(mean - 0.01 / 1.99) < 3 * deviation / math.sqrt(len(pairs))
    assert pairs[0].expected == pytest.approx(0.01 / 1.99, rel=2e-3)
    scores = [pair.z for pair in pairs]
    assert abs(sum(scores) / len(scores)) < 3 / math.sqrt(len(scores))
    assert sum(z * z for z in scores) / len(scores) == pytest.approx(1, abs=3 * math.sqrt(2 / len(scores)))


def test_variance_is_hypergeometric() -> None:
    found = overlap(of({"b": set(range(50))}), of({"b": set(range(25, 125))}))
    assert found.intersection == 25
    assert found.expected_intersection == 10
    assert found.variance == pytest.approx(50 * 0.2 * 0.8 * (450 / 499))
    assert found.z == pytest.approx(15 / math.sqrt(50 * 0.2 * 0.8 * 450 / 499))


def test_matrix_agrees_with_pairs_and_is_mirrored() -> None:
    masks = [Mask.from_shapes(SHAPES, MaskRule("random", density, 7)) for density in (0.05, 0.1, 0.3)]
    matrix = overlap_matrix(masks)
    for i, j in combinations(range(3), 2):
        assert matrix[i][j] == overlap(masks[i], masks[j])
        assert matrix[j][i] == overlap(masks[j], masks[i])
        assert matrix[i][j].intersection == masks[i].nnz  # sparser masks of one seed nest
    assert all(matrix[i][i].jaccard == 1 for i in range(3))


def test_parts_share_nothing() -> None:
    parts = [Mask.from_shapes(SHAPES, MaskRule("random", 0.1, 7, part)) for part in range(10)]
    assert all(overlap(one, other).intersection == 0 for one, other in combinations(parts, 2))
    assert complement_count(union(*parts)) == 0


def test_masks_of_different_models_are_refused() -> None:
    one = Mask.from_shapes({"w": (10, 10)}, MaskRule("random", 0.1))
    other = Mask.from_shapes({"w": (5, 20)}, MaskRule("random", 0.1))
    for operation in (overlap, union):
        with pytest.raises(ValueError, match=r"different models: w is \(10, 10\) in one and \(5, 20\)"):
            operation(one, other)
