"""Masks told from training seeds: known sums of squares, and how often the test and the interval are right."""

from __future__ import annotations

import numpy as np
import pytest

from multiticket.research.stats.heterogeneity import heterogeneity


def test_a_worked_example():
    found = heterogeneity([[1.0, 3.0], [2.0, 4.0], [6.0, 8.0]])
    # means 2, 3, 7 about 4: between 2 (4 + 1 + 9) / 2 = 14; within (2 + 2 + 2) / 3 = 2
    assert found.f == pytest.approx(7.0)
    assert found.between == pytest.approx(np.sqrt(6.0))
    assert found.within == pytest.approx(np.sqrt(2.0))
    assert found.ratio == pytest.approx(3.0)
    assert found.p_value == pytest.approx(0.0741, abs=2e-4)  # of F(2, 3) at 7
    assert (found.masks, found.runs) == (3, 6)
    # F(2, 3) is below 0.025533 and above 16.044 in one of forty cases each
    assert found.ratio_interval == pytest.approx((0.0, (7 / 0.0255327 - 1) / 2), rel=1e-5)


def test_masks_that_differ_are_told_and_equal_ones_are_not():
    generator = np.random.default_rng(0)
    same = heterogeneity([generator.normal(0.8, 0.01, 3) for _ in range(10)])
    apart = heterogeneity([generator.normal(mean, 0.01, 3) for mean in np.linspace(0.6, 0.9, 10)])
    assert same.p_value > 0.05
    assert same.permutation_p > 0.05
    assert same.ratio_interval[0] == 0
    assert apart.p_value < 1e-6
    assert apart.permutation_p < 0.001
    assert apart.ratio_interval[0] > 1
    assert apart.between == pytest.approx(np.linspace(0.6, 0.9, 10).std(ddof=1), rel=0.1)


def test_one_mask_with_several_seeds_and_others_with_one():
    generator = np.random.default_rng(4)
    groups = [generator.normal(0.8, 0.01, 5), *([value] for value in generator.normal(0.8, 0.01, 19))]
    found = heterogeneity(groups)
    assert (found.masks, found.runs) == (20, 24)
    assert found.ratio_interval[0] <= 1
    wide = heterogeneity([groups[0], *([value] for value in generator.normal(0.8, 0.08, 19))])
    assert wide.p_value < 0.01


@pytest.mark.parametrize("sizes", [[3] * 8, [6, 2, 2, 2, 2, 1, 1, 1]])
def test_errors_and_coverage_are_near_their_names(sizes):
    generator = np.random.default_rng(2)
    studies, called, permuted, covered = 200, 0, 0, 0
    for number in range(studies):
        null = heterogeneity([generator.normal(0, 1, size) for size in sizes], permutations=199, seed=number)
        called += null.p_value <= 0.05
        permuted += null.permutation_p <= 0.05
        effects = generator.normal(0, 1.5, len(sizes))
        real = heterogeneity(
            [generator.normal(effect, 1, size) for effect, size in zip(effects, sizes, strict=True)],
            permutations=1,
        )
        low, high = real.ratio_interval
        covered += low <= 1.5**2 <= high
    assert called / studies <= 0.10
    assert permuted / studies <= 0.10
    assert covered / studies >= 0.90


def test_what_cannot_be_told_is_refused():
    for groups in ([[1.0, 2.0]], [[1.0], [2.0]], []):
        with pytest.raises(ValueError, match="at least two masks"):
            heterogeneity(groups)
