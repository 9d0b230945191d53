"""Many sides judged against one reference: what is known, and how often the judgement is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.evaluate.paired import Difference, paired_difference
from multiticket.research.stats.multiplicity import holm
from multiticket.research.stats.verdicts import interval_at, judge_all, non_inferiority_p


def difference_of(difference: float, freedom: float) -> Difference:
    """With a standard error of a thousandth."""
    nothing = (0.0, 0.0)
    return Difference(0.0, 0.0, difference, nothing, nothing, 0.0, 0.0, 1e-3, freedom)


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (0, 5, 0.5),
        (1.812, 10, 0.05),
        (2.228, 10, 0.025),
        (6.314, 1, 0.05),
        (1.96, 1e6, 0.025),
        (3.0, 4, 0.01997),
    ],
)
def test_p_values_are_the_tails_of_t_in_the_tables(t, freedom, p):
    assert non_inferiority_p(difference_of(1e-3 * t, freedom), 0.0) == pytest.approx(p, rel=2e-3)
    assert non_inferiority_p(difference_of(0.0, freedom), -1e-3 * t) == pytest.approx(1 - p, rel=2e-3)


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [
        (0.975, 1, 12.70620),
        (0.975, 2, 4.302653),
        (0.95, 5, 2.015048),
        (0.975, 10, 2.228139),
        (0.995, 30, 2.749996),
        (0.975, 100, 1.983972),
        (0.95, 1000, 1.646379),
        (0.975, 1e6, 1.959966),
        (0.9999, 1.3, 528.594238),
    ],
)
def test_intervals_are_as_wide_as_the_quantiles_of_t_in_the_tables(probability, freedom, quantile):
    low, high = interval_at(difference_of(0.0, freedom), 2 * probability - 1)
    assert (low, high) == pytest.approx((-1e-3 * quantile, 1e-3 * quantile), rel=3e-6)


@given(st.floats(0.6, 0.999), st.floats(1, 500))
def test_an_interval_that_ends_at_nought_has_the_p_value_of_its_confidence(probability, freedom):
    wide = interval_at(difference_of(0.0, freedom), 2 * probability - 1)[1]
    assert non_inferiority_p(difference_of(wide, freedom), 0.0) == pytest.approx(1 - probability, abs=1e-9)


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # worked by hand
    assert holm([0.9]) == [0.9]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_lies_between_the_raw_and_bonferroni(p):
    adjusted = holm(p)
    for raw, one in zip(p, adjusted, strict=True):
        assert raw <= one <= min(1.0, len(p) * raw) + 1e-12
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(np.asarray(adjusted)[order]) >= 0)


def test_the_p_value_and_the_lower_bound_say_the_same():
    generator = np.random.default_rng(3)
    for shift in (0.0, 0.05, 0.1):
        a = (generator.random((3, 200)) < 0.7).astype(float)
        b = (generator.random((2, 200)) < 0.7 - shift).astype(float)
        difference = paired_difference(a, b, resamples=10)
        for margin in (0.02, 0.08, 0.15):
            assert (non_inferiority_p(difference, margin) < 0.05) == difference.not_worse_by(margin)
        assert interval_at(difference, 0.95) == pytest.approx(difference.interval)


def test_sides_that_are_plainly_equal_or_plainly_worse_are_called_so():
    generator = np.random.default_rng(0)
    right = generator.random(4000) < 0.8
    reference = np.stack([right, right]).astype(float)
    flips = generator.random(4000) < 0.01
    equal = (right ^ flips)[None].astype(float)
    worse = (right & (generator.random(4000) < 0.9))[None].astype(float)
    fine, bad = judge_all([(reference, equal, 1), (reference, worse, 1)])
    assert fine.not_worse
    assert not fine.worse
    assert bad.worse
    assert not bad.not_worse
    assert (fine.runs, fine.reference_runs) == (1, 2)
    low, high = fine.difference.interval
    assert fine.simultaneous[0] < low
    assert fine.simultaneous[1] > high
    assert judge_all([]) == []


def test_twenty_masks_that_all_fail_by_the_margin_are_rarely_called_fine():
    """Each side is worse by the margin exactly: with Holm any of 20 is called not worse in about 5 % of studies."""
    generator = np.random.default_rng(1)
    problems, margin, studies, wrong, covered = 400, 0.05, 120, 0, 0
    for _ in range(studies):
        ability = generator.beta(2, 1, problems)
        ability = ability - ability.mean() + 0.7
        reference = _runs(generator, ability, 3)
        sides = {str(mask): _runs(generator, ability - margin, 1) for mask in range(20)}
        judged = [_light(reference, side, margin) for side in sides.values()]
        wrong += min(holm([non_inferiority_p(one, margin) for one in judged])) <= 0.05
        intervals = [interval_at(one, 1 - 0.05 / 20) for one in judged]
        covered += all(low <= -margin <= high for low, high in intervals)
    assert wrong / studies <= 0.11  # 0.05, and two standard errors above
    assert covered / studies >= 0.89


def _runs(generator, ability, count):
    """(count, problems) of shares of 4 completions that are right."""
    return generator.binomial(4, np.clip(ability, 0, 1), (count, len(ability))) / 4


def _light(reference, side, margin):
    return paired_difference(reference, side, samples=4, resamples=2)
