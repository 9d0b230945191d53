"""What a mask keeps, on cases with a known answer, and the predicted error against masks drawn many times."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from multiticket.mask import Mask, MaskRule
from multiticket.research.theory.gradients import given
from multiticket.research.theory.gram import grams
from multiticket.research.theory.subspace import kept, predicted_error, predicted_error_of, sampling_variance

DRAWS = 400


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 15, bias=False)
        self.second = nn.Linear(10, 15)


@pytest.fixture
def rows() -> dict[str, torch.Tensor]:
    """Correlated gradients of eight samples, large in the first tensor's few columns and small in the second tensor."""
    torch.manual_seed(0)
    common = torch.randn(2, 15, 20, dtype=torch.float64)
    mixed = torch.einsum("sk,kij->sij", torch.randn(8, 2, dtype=torch.float64), common)
    return {
        "first.weight": mixed * torch.linspace(0.1, 2, 20) + 0.3 * torch.randn(8, 15, 20),
        "second.weight": 0.2 * torch.randn(8, 15, 10).double(),
        "second.bias": torch.randn(8, 15).double(),
    }


def test_nothing_is_lost(rows: dict[str, torch.Tensor]) -> None:
    full = grams(given(rows)).full
    found = kept(full, full * 0.1, 0.1, 3)
    assert found.energy == pytest.approx(0.1)
    assert found.mean_energy == pytest.approx(0.1)
    assert found.frobenius == pytest.approx(0, abs=1e-12)
    assert found.operator == pytest.approx(0, abs=1e-12)
    assert found.alignment == pytest.approx(1)
    assert found.cosines == pytest.approx((1, 1, 1))


def test_a_wrong_scale_and_a_lost_direction() -> None:
    full = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    doubled = kept(full, full, 0.5, 2)
    assert doubled.frobenius == pytest.approx(1)
    assert doubled.operator == pytest.approx(1)
    assert doubled.alignment == pytest.approx(1)
    lost = kept(full, torch.diag(torch.tensor([4.0, 0.0, 2.0, 0.0], dtype=torch.float64)), 1.0, 2)
    assert lost.cosines == pytest.approx((1, 0), abs=1e-12)
    assert lost.overlap == pytest.approx(0.5)
    assert lost.operator == pytest.approx(3 / 4)
    assert lost.frobenius == pytest.approx(math.sqrt((9 + 1) / 30))
    assert lost.energy == pytest.approx(0.6)


def test_no_gradient_in_the_mask() -> None:
    nothing = kept(torch.eye(3).double(), torch.zeros(3, 3).double(), 0.1, 2)
    assert nothing.energy == nothing.alignment == nothing.overlap == 0
    assert nothing.frobenius == nothing.operator == 1


def test_a_mask_of_fewer_positions_than_directions() -> None:
    one = torch.zeros(3, 3, dtype=torch.float64)
    one[0, 0] = 1.0
    assert kept(torch.eye(3).double() + one, one, 1.0, 2).cosines == pytest.approx((1, 0))


@pytest.mark.parametrize("count", [1, 4, 7])
def test_variance_of_a_sum_without_replacement(count: int) -> None:
    """Over all subsets, one by one."""
    numbers = torch.tensor([1.0, -2.0, 5.0, 0.5, 0.0, 3.0, 3.0], dtype=torch.float64)
    subsets = torch.combinations(torch.arange(7), count)
    sums = numbers[subsets].sum(1)
    expected = float(sums.var(correction=0))
    found = sampling_variance(float(numbers.square().sum()), float(numbers.sum()) ** 2, 7, count)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "density", "options"),
    [
        ("random", 0.2, {}),
        ("random", 0.03, {}),  # the bias gets no position
        ("numpy", 0.2, {}),
        ("modules", 0.2, {"modules": "mlp"}),
    ],
)
def test_predicted_error(
    method: str, density: float, options: dict[str, str], rows: dict[str, torch.Tensor]
) -> None:
    """The root mean square over many seeds' masks, made as a run makes them."""
    model = Model()
    if method == "modules":
        model = nn.ModuleDict({"mlp": model})
        rows = {f"mlp.{name}": tensor for name, tensor in rows.items()}
    masks = [
        Mask.from_rule(model, MaskRule(method, density, seed=seed, options=options)) for seed in range(DRAWS)
    ]
    found = grams(given(rows), masks)
    errors = [kept(found.full, masked, density, 1).frobenius for masked in found.masked]
    root_mean_square = math.sqrt(sum(error**2 for error in errors) / DRAWS)
    assert predicted_error_of(found, masks[0], density) == pytest.approx(root_mean_square, rel=0.06)


def test_predicted_error_of_a_whole_tensor_is_its_missing_rest(rows: dict[str, torch.Tensor]) -> None:
    found = grams(given(rows))
    numel = {"first.weight": 300, "second.weight": 150, "second.bias": 15}
    assert predicted_error(found, numel, numel, 1.0) == pytest.approx(0, abs=1e-12)
    count = {**numel, "second.bias": 0}
    left = float(found.by_tensor["second.bias"].norm() / found.full.norm())
    assert predicted_error(found, numel, count, 1.0) == pytest.approx(left)


def test_columns_of_like_entries_lose_more_than_predicted(rows: dict[str, torch.Tensor]) -> None:
    """A column's entries are alike here, so whole columns carry less than as many scattered positions."""
    model = Model()
    masks = [Mask.from_rule(model, MaskRule("columns", 0.2, seed=seed)) for seed in range(100)]
    found = grams(given(rows), masks)
    errors = [kept(found.full, masked, 0.2, 1).frobenius for masked in found.masked]
    assert math.sqrt(sum(e**2 for e in errors) / 100) > 1.2 * predicted_error_of(found, masks[0], 0.2)
