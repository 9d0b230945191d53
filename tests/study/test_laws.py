"""Exponents recovered from data that have them."""

from __future__ import annotations

import numpy as np
import pytest

from multiticket.study.collapse import Run, collapse
from multiticket.study.power_law import power_law


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
    with pytest.raises(ValueError, match="An exponent takes"):
        power_law(x, y)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_curves_come_together_at_their_exponent(exponent):
    generator = np.random.default_rng(1)
    runs = []
    for density in (1.0, 0.1, 0.01):
        for strength in (0.1, 0.3, 1, 3, 10):
            for _ in range(3):
                y = np.exp(-((np.log(strength)) ** 2) / 3) + generator.normal(0, 0.01)
                runs.append(Run(density, 1e-4 * strength / density**exponent, float(y)))
    found = collapse(runs, resamples=100)
    assert found.exponent == pytest.approx(exponent, abs=0.04)
    assert found.interval is not None
    assert found.interval[0] <= found.exponent <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.2
    assert found.distance < 0.05
    assert found.n == 45


def test_one_run_a_cell_has_an_exponent_and_no_interval():
    runs = [Run(d, r / d, r) for d in (1.0, 0.1) for r in (0.1, 0.2, 0.4)]
    assert collapse(runs).exponent == pytest.approx(1.0)
    assert collapse(runs).interval is None
    with pytest.raises(ValueError, match="two densities or more"):
        collapse(runs[:3])
