"""Moves of weights, and whether two of them interfere, on models where the answer is known."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from interference import interference
from multiticket.research.theory.rollouts import Rollout
from task_vectors import cosine, shuffled, size_of, task_vector, with_task_vectors


class Linear(nn.Module):
    """Logits that are linear in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 6))

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self._logits(self.table)[input_ids])

    def _logits(self, table: torch.Tensor) -> torch.Tensor:
        return table


class Squared(Linear):
    """Logits in which two entries' moves multiply: their own effects are nothing."""

    def _logits(self, table: torch.Tensor) -> torch.Tensor:
        changed = table.detach().clone()
        changed[0, 0] = table[1, 1] * table[2, 2]
        changed[1, 1] = changed[2, 2] = 0.0
        return changed


def _moved(model: nn.Module, **entries: float) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for place, value in entries.items():
            other.table[int(place[1]), int(place[2])] += value
    return other


@pytest.fixture
def rollouts() -> list[Rollout]:
    ids = [(0, 1, 2), (1, 2, 0), (2, 0, 0), (0, 0, 1)]
    return [Rollout(i, one, (False, True, True), 0.0, 0.0) for i, one in enumerate(ids)]


def test_a_move_is_added_and_taken_away_bit_for_bit() -> None:
    torch.manual_seed(0)
    base = Linear()
    first, second = _moved(base, t00=0.5), _moved(base, t00=-0.25, t12=2.0)
    a, b = task_vector(base, first), task_vector(base, second)
    before = base.table.detach().clone()
    with with_task_vectors(base, [(1.0, a), (0.5, b)]):
        delta = base.table.detach() - before
        assert delta[0, 0].item() == pytest.approx(0.375, abs=1e-6)
        assert delta[1, 2].item() == pytest.approx(1.0, abs=1e-6)
        assert int((delta != 0).sum()) == 2
    assert torch.equal(base.table, before)
    assert task_vector(base, base) == {}


def test_size_and_angle() -> None:
    base = Linear()
    with torch.no_grad():
        base.table.fill_(2.0)
    move = task_vector(base, _moved(base, t00=3.0, t01=4.0))
    size = size_of(base, move)
    assert (size.moved, size.distance) == (2, pytest.approx(5.0))
    assert size.relative == pytest.approx(5 / 12)
    assert size.relative_there == pytest.approx(5 / 8**0.5)
    other = task_vector(base, _moved(base, t00=3.0, t55=1.0))
    assert cosine(move, other) == pytest.approx(9 / (5 * 10**0.5))
    assert cosine(move, {}) == 0.0


def test_shuffled_values_stay_in_their_places() -> None:
    base = Linear()
    move = task_vector(base, _moved(base, t00=1.0, t01=2.0, t02=3.0, t13=4.0, t24=5.0))
    mixed = shuffled(move)["table"]
    assert torch.equal(mixed != 0, move["table"] != 0)
    assert sorted(mixed[mixed != 0].tolist()) == sorted(move["table"][mixed != 0].tolist())
    assert not torch.equal(mixed, move["table"])


def test_moves_of_a_linear_policy_do_not_interact(rollouts: list[Rollout]) -> None:
    torch.manual_seed(0)
    base = Linear()
    first, second, both = _moved(base, t01=1.0), _moved(base, t12=1.0), _moved(base, t01=1.0, t12=1.0)
    found = interference(base, first, second, both, rollouts)
    assert found.interaction == pytest.approx(0, abs=1e-9)
    assert found.together.completion == pytest.approx(found.additive.completion, rel=1e-5)
    assert found.drift.completion > 0


def test_a_product_is_all_interaction(rollouts: list[Rollout]) -> None:
    base = Squared()
    with torch.no_grad():
        base.table.zero_()
    first, second, both = _moved(base, t11=2.0), _moved(base, t22=1.0), _moved(base, t11=2.0, t22=1.0)
    found = interference(base, first, second, both, rollouts)
    assert found.interaction == pytest.approx(1.0)
    assert found.drift.completion == found.additive.completion == 0
    assert found.together.completion > 0
