"""Exponents recovered from data that have them."""

from __future__ import annotations

import numpy as np
import pytest

from multiticket.research.stats.curve_collapse import CurvePoint, collapse_curves
from multiticket.research.stats.power_law import power_law


def test_an_exact_law_is_found_exactly():
    x = [0.1, 0.01, 0.001, 0.0001]
    law = power_law(x, [1e-4 / value for value in x])
    assert law.exponent == pytest.approx(-1.0)
    assert law.interval == pytest.approx((-1.0, -1.0))
    assert law.bootstrap == pytest.approx((-1.0, -1.0))
    assert law.scale == pytest.approx(1e-4)
    assert law.r_squared == pytest.approx(1.0)
    assert law.at(0.01) == pytest.approx(1e-2)
    assert law.n == 4


def test_the_interval_holds_the_exponent_as_often_as_it_says():
    generator = np.random.default_rng(0)
    x = np.repeat([0.1, 0.03, 0.01, 0.003, 0.001], 3)
    held = 0
    for _ in range(300):
        law = power_law(x, x**-0.8 * np.exp(generator.normal(0, 0.3, len(x))), resamples=10)
        held += law.interval[0] <= -0.8 <= law.interval[1]
    assert 0.91 <= held / 300 <= 0.985


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 0, 2]), ([1, 2, 3], [1, 2])]
)
def test_what_has_no_exponent_is_refused(x, y):
    with pytest.raises(ValueError, match="A power law needs"):
        power_law(x, y)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_curves_come_together_at_their_exponent(exponent):
    generator = np.random.default_rng(1)
    found = collapse_curves(curves(exponent, generator, 0.01), resamples=50)
    assert found.exponent == pytest.approx(exponent, abs=0.04)
    assert found.interval is not None
    assert found.interval[0] <= found.exponent <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.25
    assert found.distance < 0.05
    assert found.n == 45


def curves(exponent, generator, noise, shift=0.0):
    """Three runs a place, of three densities; the sparsest's best strength is off by a factor exp(`shift`)."""
    runs = []
    for density in (1.0, 0.1, 0.01):
        for strength in (0.1, 0.3, 1, 3, 10):
            for _ in range(3):
                off = np.log(strength) - shift * (density == 0.01)
                y = np.exp(-(off**2) / 3) + generator.normal(0, noise)
                runs.append(CurvePoint(density, 1e-4 * strength / density**exponent, float(y)))
    return runs


def test_the_interval_of_a_collapse_holds_its_exponent():
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(25):
        low, high = collapse_curves(curves(0.83, generator, 0.1), resamples=20).interval
        held += low <= 0.83 <= high
    assert held >= 21


def test_curves_that_do_not_come_together_have_a_wide_interval():
    generator = np.random.default_rng(3)
    low, high = collapse_curves(curves(1.0, generator, 0.01, shift=1.5), resamples=20).interval
    assert high - low > 0.6


def test_one_run_a_cell_has_an_exponent_and_no_interval():
    runs = [CurvePoint(d, r / d, r) for d in (1.0, 0.1) for r in (0.1, 0.2, 0.4)]
    assert collapse_curves(runs).exponent == pytest.approx(1.0)
    assert collapse_curves(runs).interval is None
    with pytest.raises(ValueError, match="at least two densities"):
        collapse_curves(runs[:3])
    apart = [CurvePoint(d, r, r) for d, far in ((1.0, 1.0), (0.1, 1e6)) for r in (far, 2 * far)]
    with pytest.raises(ValueError, match="No exponent brings the curves"):
        collapse_curves(apart)
