"""Effective ranks of spectra that are known, of noise, and of samples from a known covariance."""

from __future__ import annotations

import math

import pytest
import torch

from multiticket.research.theory.spectrum import (
    effective_rank,
    eigenvalues,
    growth,
    noise_gram,
    noise_participation,
    noise_rank,
    population_rank,
)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_equal_eigenvalues(k: int) -> None:
    rank = effective_rank(torch.cat([torch.full((k,), 2.5), torch.zeros(7)]))
    assert rank.participation == pytest.approx(k)
    assert rank.entropy == pytest.approx(k)
    assert rank.energy95 == math.ceil(0.95 * k - 1e-9)


def test_two_eigenvalues() -> None:
    rank = effective_rank(torch.tensor([1.0, 3.0]))
    assert rank.participation == pytest.approx(16 / 10)
    assert rank.entropy == pytest.approx(4 / 3**0.75)
    assert rank.energy95 == 2


def test_no_gradient() -> None:
    with pytest.raises(ValueError, match="no spectrum"):
        effective_rank(torch.zeros(3))


def _samples(count: int, spectrum: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, len(spectrum), dtype=torch.float64, generator=generator) * spectrum.sqrt()


def test_eigenvalues_are_those_of_the_second_moment() -> None:
    rows = _samples(6, torch.linspace(1, 5, 9, dtype=torch.float64))
    second_moment = torch.linalg.eigvalsh(rows.T @ rows).flip(0)
    torch.testing.assert_close(eigenvalues(rows @ rows.T), second_moment[:6])


def test_population_rank_sees_past_the_number_of_samples() -> None:
    """40 samples of a covariance whose participation ratio is 300: what they show is below 40, the estimate is not."""
    spectrum = torch.ones(300, dtype=torch.float64)
    estimates = []
    for seed in range(20):
        rows = _samples(40, spectrum, seed)
        gram = rows @ rows.T
        assert effective_rank(eigenvalues(gram)).participation < 40
        estimates.append(population_rank(gram))
    mean = sum(estimate.value for estimate in estimates) / len(estimates)
    assert mean == pytest.approx(300, rel=0.05)
    assert sum(estimate.low < 300 < estimate.high for estimate in estimates) >= 17


def test_population_rank_of_an_uneven_spectrum() -> None:
    spectrum = torch.tensor([100.0] * 2 + [1.0] * 400, dtype=torch.float64)
    true = float(spectrum.sum() ** 2 / spectrum.square().sum())
    rows = _samples(1000, spectrum)
    found = population_rank(rows @ rows.T)
    assert found.low < true < found.high
    assert found.value == pytest.approx(true, rel=0.1)


def test_groups_that_repeat_a_sample() -> None:
    """Eight copies of each sample are no more evidence: left in as if independent they would bias the estimate."""
    rows = _samples(50, torch.ones(200, dtype=torch.float64))
    alone = population_rank(rows @ rows.T)
    copied = rows.repeat_interleave(8, 0)
    groups = torch.arange(50).repeat_interleave(8).tolist()
    grouped = population_rank(copied @ copied.T, groups)
    assert grouped.value == pytest.approx(alone.value)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    assert population_rank(copied @ copied.T).value < alone.value / 2


def test_too_few_groups() -> None:
    with pytest.raises(ValueError, match="three"):
        population_rank(torch.eye(4), [0, 0, 1, 1])


@pytest.mark.parametrize("dimension", [12, 60, 5000])
def test_noise_is_that_of_random_directions(dimension: int) -> None:
    """Against vectors drawn one by one: exact norms, and the same spectrum on average."""
    norms = torch.linspace(0.5, 2, 10, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    squares, plain = [], []
    for _ in range(300):
        gram = noise_gram(norms, dimension, generator)
        torch.testing.assert_close(gram.diagonal().sqrt(), norms)
        squares.append(gram.square().sum())
        rows = torch.randn(10, dimension, dtype=torch.float64, generator=generator)
        rows *= (norms / rows.norm(dim=1))[:, None]
        plain.append((rows @ rows.T).square().sum())
    assert float(torch.stack(squares).mean()) == pytest.approx(float(torch.stack(plain).mean()), rel=0.01)
    total = float(norms.square().sum()) ** 2
    assert noise_participation(norms, dimension) == pytest.approx(
        total / float(torch.stack(squares).mean()), rel=0.01
    )


def test_noise_rank_is_bounded_by_samples() -> None:
    rank = noise_rank(torch.ones(64), 10**6)
    assert 63.9 < rank.participation <= 64
    assert 63.9 < rank.entropy <= 64
    assert rank.energy95 == math.ceil(0.95 * 64)
    assert noise_rank(torch.ones(64), 64).participation == pytest.approx(32, abs=1)  # S n / (S + n)


def test_growth_of_noise_and_of_a_few_directions() -> None:
    noise = _samples(64, torch.ones(100_000, dtype=torch.float64))
    rises = growth(noise @ noise.T, 100_000)
    assert [point.samples for point in rises] == [8, 16, 32, 64]
    assert all(point.rank.participation == pytest.approx(point.samples, rel=0.02) for point in rises)
    assert all(point.noise == pytest.approx(point.rank.participation, rel=0.01) for point in rises)
    few = _samples(64, torch.ones(2, dtype=torch.float64))
    assert all(point.rank.participation <= 2 for point in growth(few @ few.T, 1000))
