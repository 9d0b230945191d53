"""Spread of vectors that are known, and of the leading eigenvectors of streamed gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from multiticket.research.theory.delocalisation import (
    ALL,
    GAUSSIAN_PARTICIPATION,
    Spread,
    gaussian_coherence,
    leading_vectors,
    spread_of_leading,
)
from multiticket.research.theory.gradients import given
from multiticket.research.theory.gram import grams
from multiticket.research.theory.kinds import kind_of


def _spread(vector: torch.Tensor) -> Spread:
    spread = Spread(len(vector))
    for part in vector.double().split(7):
        spread.add(part)
    return spread


def test_flat_and_single() -> None:
    flat, single = _spread(torch.full((50,), -3.0)), _spread(torch.eye(50)[3])
    assert flat.coherence == pytest.approx(1)
    assert flat.participation == pytest.approx(1)
    assert single.coherence == pytest.approx(50)
    assert single.participation == pytest.approx(1 / 50)


@pytest.mark.parametrize("numel", [100, 10_000])
def test_gaussian(numel: int) -> None:
    draws = np.random.default_rng(0).standard_normal((2000, numel))
    assert gaussian_coherence(numel) == pytest.approx(np.median((draws**2).max(1)), rel=0.03)
    assert np.mean((draws**4).mean(1)) == pytest.approx(1 / GAUSSIAN_PARTICIPATION, rel=0.01)


def test_gaussian_coherence_of_a_large_model() -> None:
    """Against the limit law of the largest of n normals: 2 ln n - ln ln n - ln pi - 2 ln ln 2."""
    log = math.log(494_032_768)
    limit = 2 * log - math.log(log) - math.log(math.pi) - 2 * math.log(math.log(2))
    assert gaussian_coherence(494_032_768) == pytest.approx(limit, rel=5e-3)


def test_leading_directions_are_found() -> None:
    """One sample's direction in one coordinate of the attention, another's flat over the embedding."""
    attention, embedding = torch.zeros(3, 4, 5), torch.zeros(3, 6)
    attention[0, 1, 2] = 10.0
    embedding[1] = 1.0
    attention[2] = 1e-3
    gradients = given({"layers.0.attn.q.weight": attention.double(), "embed.weight": embedding.double()})
    first, second = spread_of_leading(gradients, grams(gradients).full, 2)
    assert first[ALL].energy == pytest.approx(1)
    assert first[ALL].coherence == pytest.approx(26, rel=1e-3)
    assert first["attention"].energy == pytest.approx(1, rel=1e-6)
    assert second["embeddings"].energy == pytest.approx(1, rel=1e-6)
    assert second["embeddings"].coherence == pytest.approx(1)
    assert second["embeddings"].numel == 6


def test_against_the_singular_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiticket.research.theory.gradients.PIECE", 6)
    torch.manual_seed(0)
    rows = torch.randn(9, 40, dtype=torch.float64)
    gradients = given({"weight": rows})
    found = spread_of_leading(gradients, grams(gradients).full, 3)
    right = torch.linalg.svd(rows, full_matrices=False).Vh[:3]
    for spread, vector in zip(found, right, strict=True):
        assert spread[ALL].coherence == pytest.approx(float(40 * vector.square().max()))
        assert spread[ALL].participation == pytest.approx(float(1 / (40 * vector.pow(4).sum())))


def test_more_vectors_than_directions() -> None:
    rows = torch.ones(4, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="1 directions"):
        leading_vectors(rows @ rows.T, 2)


def test_kinds() -> None:
    assert kind_of("model.layers.0.self_attn.q_proj.bias") == "bias"
    assert kind_of("model.layers.0.mlp.up_proj.weight") == "mlp"
    assert kind_of("model.embed_tokens.weight") == "embeddings"
    assert kind_of("model.norm.weight") == "norms"
    assert kind_of("conv.weight") == "other"
