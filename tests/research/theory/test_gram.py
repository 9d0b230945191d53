"""Streamed Gram matrices against the plain product of whole gradient matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from multiticket.mask import Mask, MaskRule, masked_candidates
from multiticket.research.theory.gradients import Gradients, given, of_model
from multiticket.research.theory.gram import grams

SAMPLES, FEATURES, CLASSES = 7, 5, 4


class Softmax(nn.Module):
    """log p(y | x) of a linear softmax model, whose gradient is known: (e_y - p) x^T for the weight, e_y - p for
    the bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES, dtype=torch.float64)
        self.unused = nn.Linear(3, 2, dtype=torch.float64)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(x).log_softmax(-1)[y]


@pytest.fixture
def model() -> Softmax:
    torch.manual_seed(0)
    return Softmax()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(SAMPLES, FEATURES, dtype=torch.float64), torch.randint(CLASSES, (SAMPLES,))


def _gradients(model: Softmax, data: tuple[Tensor, Tensor], memory: int = 2**30) -> Gradients:
    return of_model(
        model, [lambda x=x, y=y: model.log_prob(x, y) for x, y in zip(*data, strict=True)], memory
    )


def _analytic(model: Softmax, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    x, y = data
    residual = nn.functional.one_hot(y, CLASSES).double() - model.linear(x).softmax(-1).detach()
    return {"linear.weight": residual[:, :, None] * x[:, None, :], "linear.bias": residual}


def _naive(tensors: dict[str, Tensor], mask: Mask | None = None) -> Tensor:
    """The definition: all gradients as rows of one matrix."""
    rows = []
    for name, tensor in tensors.items():
        flat = tensor.reshape(len(tensor), -1)
        rows.append(flat if mask is None else flat[:, mask.indices(name)])
    whole = torch.cat(rows, 1)
    return whole @ whole.T


def test_linear_softmax(model: Softmax, data: tuple[Tensor, Tensor]) -> None:
    found = grams(_gradients(model, data))
    x, _ = data
    residual = _analytic(model, data)["linear.bias"]
    torch.testing.assert_close(found.full, (residual @ residual.T) * (x @ x.T + 1))
    torch.testing.assert_close(found.by_tensor["linear.bias"], residual @ residual.T)
    assert not found.by_tensor["unused.weight"].any()
    assert found.fourth["linear.bias"] == pytest.approx(float(residual.square().sum(0).square().sum()))


@pytest.mark.parametrize("coordinates", [1, 3, 8, 15])
def test_blocks_change_nothing(model: Softmax, data: tuple[Tensor, Tensor], coordinates: int) -> None:
    mask = Mask.random(model, 0.5, seed=3)
    blocks = _gradients(model, data, 2 * coordinates * SAMPLES * 8)
    widths = [piece.values.shape[1] for piece in blocks.pieces()]
    assert max(widths) <= coordinates
    assert sum(widths) == blocks.numel == sum(w.numel() for w in masked_candidates(model).values())
    found, whole = grams(blocks, [mask]), grams(_gradients(model, data), [mask])
    torch.testing.assert_close(found.full, whole.full, rtol=1e-14, atol=1e-16)
    torch.testing.assert_close(found.masked[0], whole.masked[0], rtol=1e-14, atol=1e-16)
    assert found.fourth == pytest.approx(whole.fourth, rel=1e-14)


def test_memory_for_no_coordinate(model: Softmax, data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="need more --memory"):
        _gradients(model, data, 2 * SAMPLES * 8 - 1)


@pytest.mark.parametrize("method", ["random", "rows", "columns"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_masked(method: str, density: float, model: Softmax, data: tuple[Tensor, Tensor]) -> None:
    mask = Mask.from_rule(model, MaskRule(method, density, seed=1))
    found = grams(_gradients(model, data, 6 * SAMPLES * 8), [mask])
    tensors = {name: g for name, g in _analytic(model, data).items() if name in mask.names}
    torch.testing.assert_close(found.masked[0], _naive(tensors, mask))


def test_nothing_of_the_model_changes(model: Softmax, data: tuple[Tensor, Tensor]) -> None:
    model.linear.bias.requires_grad_(False)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    grams(_gradients(model, data))
    assert not model.linear.bias.requires_grad
    assert model.linear.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_twice_the_same(model: Softmax, data: tuple[Tensor, Tensor]) -> None:
    gradients = _gradients(model, data, 4 * SAMPLES * 8)
    for first, second in zip(gradients.pieces(), gradients.pieces(), strict=True):
        assert first.name == second.name
        assert torch.equal(first.values, second.values)


def test_pieces_of_a_large_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiticket.research.theory.gradients.PIECE", 10)
    torch.manual_seed(0)
    module = nn.Linear(9, 5, bias=False)
    rows = {"weight": torch.randn(6, 5, 9, dtype=torch.float64)}
    masks = [Mask.random(module, density, seed=2) for density in (0.2, 1.0)]
    found = grams(given(rows), masks)
    torch.testing.assert_close(found.full, _naive(rows))
    for mask, gram in zip(masks, found.masked, strict=True):
        torch.testing.assert_close(gram, _naive(rows, mask))
    assert math.prod(rows["weight"].shape[1:]) == 45


def test_mask_of_another_model(model: Softmax, data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="another model"):
        grams(_gradients(model, data), [Mask.random(nn.Linear(3, 3), 0.5)])
