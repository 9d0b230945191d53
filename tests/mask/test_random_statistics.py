"""The permutation is uniform: in positions, pairs, rows and columns, and independent of seed, tensor and part.

Every draw is fixed by its seeds, so each test passes always or never. Bounds are two-sided p-values of 0.0005:
a chi-square that is too small (too even to be random) fails as one that is too large does.
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from multiticket.mask import random

P = 0.0005


def permuted(numel: int, start: int, stop: int, seed: int, name: str = "w") -> np.ndarray:
    return random.permuted(numel, start, stop, random.tensor_key(seed, name, (numel,))).numpy()


def assert_chi_square(
    observed: np.ndarray, expected: float | np.ndarray, degrees: int, spread: float = 1.0
) -> None:
    """``spread``: variance of a cell over its mean, where drawing without replacement makes it less than one."""
    statistic = float(((observed - expected) ** 2 / expected).sum()) / spread
    upper = torch.special.gammaincc(torch.tensor(degrees / 2).double(), torch.tensor(statistic / 2).double())
    assert P < float(upper) < 1 - P, (
        f"chi-square {statistic:.1f} on {degrees} degrees: p = {float(upper):.2g}"
    )


def test_all_orders_of_four_positions_are_as_frequent() -> None:
    counts = dict.fromkeys(permutations(range(4)), 0)
    for seed in range(6000):
        counts[tuple(permuted(4, 0, 4, seed).tolist())] += 1
    assert_chi_square(np.array(list(counts.values())), 6000 / 24, 23)


@pytest.mark.parametrize("numel", [2, 7, 12])
def test_first_pairs_of_a_small_tensor_are_uniform(numel: int) -> None:
    draws, counts = 4000, np.zeros((numel, numel))
    for seed in range(draws):
        first, second = permuted(numel, 0, 2, seed)
        counts[first, second] += 1
    assert (counts.diagonal() == 0).all()
    pairs = numel * (numel - 1)
    assert_chi_square(counts[~np.eye(numel, dtype=bool)], draws / pairs, pairs - 1)


@pytest.mark.parametrize("numel", [100, 896, 4096])
def test_every_position_of_a_small_tensor_is_chosen_as_often(numel: int) -> None:
    draws, chosen, counts = 1500, numel // 10, np.zeros(numel)
    for seed in range(draws):
        counts[permuted(numel, 0, chosen, seed)] += 1
    # without replacement: cells have variance mean (1 - k/n) and sum to a constant
    spread = (1 - chosen / numel) * numel / (numel - 1)
    assert_chi_square(counts, draws * chosen / numel, numel - 1, spread)


SHAPES = [(257, 256), (256, 300), (1000, 1000), (4864, 896), (151936, 896)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", [0, 37])
def test_rows_and_columns_of_a_large_tensor_are_uniform(shape: tuple[int, int], part: int) -> None:
    rows, columns = shape
    numel = rows * columns
    chosen = min(numel // 100, 300_000)
    flat = random.permuted(
        numel, part * chosen, (part + 1) * chosen, random.tensor_key(11, "w", shape)
    ).numpy()
    left = (numel - chosen) / (numel - 1)
    by_row = np.bincount(flat // columns, minlength=rows)
    by_column = np.bincount(flat % columns, minlength=columns)
    assert_chi_square(by_row, chosen / rows, rows - 1, left)
    assert_chi_square(by_column, chosen / columns, columns - 1, left)


@pytest.mark.parametrize("numel", [65537, 70_000, 10**6, 2**31 + 11, 2**40 - 1])
def test_neighbouring_places_of_a_large_tensor_are_independent(numel: int) -> None:
    """Pairs (place i, place i + 1) in 32 x 32 cells, by high digits and by low digits, over many seeds."""
    draws, chosen = 100, 600
    base, width = math.isqrt(numel - 1) + 1, numel // 32 + 1
    high, low = np.zeros((32, 32)), np.zeros((32, 32))
    for seed in range(draws):
        flat = permuted(numel, 0, chosen, seed)
        for counts, cell in ((high, flat // width), (low, flat % base * 32 // base)):
            np.add.at(counts, (cell[:-1], cell[1:]), 1)
    high_share = np.diff(np.minimum(np.arange(33) * width, numel)) / numel
    low_share = np.diff(-(-np.arange(33) * base // 32)) / base
    for counts, share in ((high, high_share), (low, low_share)):
        assert_chi_square(counts, draws * (chosen - 1) * np.outer(share, share), 1023)


@pytest.mark.parametrize("numel", [70_000, 10**6])
def test_gaps_between_chosen_positions_are_geometric(numel: int) -> None:
    chosen, draws, counts, density = numel // 100, 30, np.zeros(21), 0.01
    for seed in range(draws):
        gaps = np.diff(np.sort(permuted(numel, 0, chosen, seed)))
        counts += np.bincount(np.minimum((gaps - 1) // 20, 20), minlength=21)
    edges = 1 - (1 - density) ** (20 * np.arange(21))
    expected = counts.sum() * np.append(np.diff(edges), 1 - edges[-1])
    assert_chi_square(counts, expected, 20)


@pytest.mark.parametrize("numel", [896, 70_000, 10**6])
@pytest.mark.parametrize("what", ["seeds", "tensors"])
def test_masks_of_other_seeds_and_tensors_overlap_by_chance(numel: int, what: str) -> None:
    chosen, many = numel // 20, 24
    flats = [
        permuted(numel, 0, chosen, i, "w")
        if what == "seeds"
        else permuted(numel, 0, chosen, 5, f"layers.{i}.w")
        for i in range(many)
    ]
    expected = chosen * chosen / numel
    variance = expected * (1 - chosen / numel) * (numel - chosen) / (numel - 1)
    scores = np.array(
        [
            (len(np.intersect1d(flats[i], flats[j], assume_unique=True)) - expected) / math.sqrt(variance)
            for i in range(many)
            for j in range(i)
        ]
    )
    pairs = len(scores)
    assert abs(scores.mean()) * math.sqrt(pairs) < 3.5
    assert abs(scores.std() - 1) * math.sqrt(2 * pairs) < 3.5


def test_parts_of_one_seed_are_unrelated_to_each_other_in_their_order() -> None:
    """Place i of part 0 and place i of part 1 are as independent as two draws."""
    numel, chosen, counts = 10**6, 10_000, np.zeros(256)
    for seed in range(10):
        first, second = permuted(numel, 0, chosen, seed), permuted(numel, chosen, 2 * chosen, seed)
        counts += np.bincount((first * 16 // numel) * 16 + second * 16 // numel, minlength=256)
    assert_chi_square(counts, 10 * chosen / 256, 255)
