"""Masks from weights and gradients."""

from __future__ import annotations

import pytest
import torch

from multiticket.mask import Mask, MaskRule, squared_gradients
from multiticket.mask.scores import principal


def test_magnitude_takes_the_largest_or_the_smallest_of_each_tensor(toy: torch.nn.Module) -> None:
    weights = dict(toy.named_parameters())
    for which, sign in (("largest", 1), ("smallest", -1)):
        mask = Mask.from_rule(toy, MaskRule("magnitude", 0.1, options={"which": which}))
        assert mask.nnz == Mask.random(toy, 0.1).nnz
        for name in ("embed.weight", "experts"):
            weight = weights[name].detach().flatten()
            expected = (sign * weight.abs()).topk(mask.count(name)).indices.sort().values
            assert torch.equal(mask.indices(name), expected)


def test_ties_are_broken_at_random_by_the_seed(toy: torch.nn.Module) -> None:
    scores = {name: torch.zeros_like(weight) for name, weight in toy.named_parameters()}
    scores["experts"].view(-1)[[3, 500]] = 1.0
    masks = [Mask.from_scores(toy, scores, 0.1, MaskRule("scores", 0.1, seed)) for seed in (0, 0, 1)]
    first, again, other = (mask.indices("experts") for mask in masks)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert {3, 500} <= set(first.tolist()) & set(other.tolist())
    assert len(first) == int(864 * 0.1)
    assert first.double().mean() == pytest.approx(432, abs=100)


def test_scores_may_come_one_tensor_at_a_time(toy: torch.nn.Module) -> None:
    weights = dict(toy.named_parameters())
    at_once = Mask.from_scores(toy, {name: w.detach() for name, w in weights.items()}, 0.05)
    one_by_one = Mask.from_scores(toy, lambda name: weights[name].detach(), 0.05)
    assert all(torch.equal(at_once.indices(name), one_by_one.indices(name)) for name in at_once.names)


def test_principal_is_the_projection_onto_the_top_singular_subspace() -> None:
    torch.manual_seed(1)
    for shape in ((12, 30), (30, 12)):
        weight = torch.randn(shape)
        u, _, v = torch.linalg.svd(weight.double(), full_matrices=False)
        left, right = u[:, :3], v[:3].T
        onto_left, onto_right = left @ left.T, right @ right.T
        expected = torch.empty(shape, dtype=torch.float64)
        for i in range(shape[0]):
            for j in range(shape[1]):
                entry = torch.zeros(shape, dtype=torch.float64)
                entry[i, j] = 1
                expected[i, j] = (onto_left @ entry @ onto_right).square().sum()
        rule = MaskRule("principal", 0.1, options={"rank": 3})
        assert torch.allclose(principal(weight, rule).double(), expected, atol=1e-5)


def test_principal_of_vectors_and_stacks() -> None:
    torch.manual_seed(1)
    vector, stack = torch.randn(9), torch.randn(2, 5, 6)
    rule = MaskRule("principal", 0.1, options={"rank": 2})
    assert torch.allclose(principal(vector, rule), vector**2 / (vector**2).sum(), atol=1e-6)
    assert torch.allclose(principal(stack, rule)[1], principal(stack[1], rule))


def test_principal_and_off_principal_are_apart(toy: torch.nn.Module) -> None:
    top, off = (Mask.from_rule(toy, MaskRule(method, 0.3)) for method in ("principal", "off-principal"))
    for name in ("embed.weight", "layers.1.mlp.weight"):
        assert not set(top.indices(name).tolist()) & set(off.indices(name).tolist())


def test_fisher_is_the_mean_squared_gradient(toy: torch.nn.Module) -> None:
    weights = dict(toy.named_parameters())
    toy.embed.weight.requires_grad_(False)
    inputs = torch.arange(6).view(3, 2)

    def loss(row: torch.Tensor) -> torch.Tensor:
        hidden = toy.layers[0]["mlp"](toy.layers[0]["self_attn"](toy.embed(row)))
        return toy.lm_head(hidden).logsumexp(-1).sum()

    scores = squared_gradients(toy, (loss(row) for row in inputs))
    toy.embed.weight.requires_grad_(True)
    expected = sum(torch.autograd.grad(loss(row), toy.embed.weight)[0] ** 2 for row in inputs) / 3
    assert torch.allclose(scores["embed.weight"], expected)
    assert float(scores["experts"].abs().sum()) == 0
    assert all(weight.grad is None for weight in weights.values())
    mask = Mask.from_scores(toy, scores, 0.1, MaskRule("fisher", 0.1))
    chosen = expected.flatten()[mask.indices("embed.weight")]
    assert len(chosen) == 120
    assert float(chosen.min()) >= float(expected.flatten().kthvalue(1200 - 120).values)


def test_fisher_leaves_requires_grad_alone(toy: torch.nn.Module) -> None:
    toy.experts.requires_grad_(False)
    squared_gradients(toy, (toy.lm_head.weight.sum() for _ in range(1)))
    assert not toy.experts.requires_grad
    assert toy.lm_head.weight.requires_grad
    with pytest.raises(ValueError, match="at least one rollout"):
        squared_gradients(toy, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores.pop("experts"), "no scores for experts"),
        (lambda scores: scores.update(experts=torch.zeros(3)), "have shape"),
        (lambda scores: scores["experts"].fill_(float("nan")), "contain NaN"),
    ],
)
def test_bad_scores_are_refused(toy: torch.nn.Module, change: object, message: str) -> None:
    scores = {name: torch.zeros_like(weight) for name, weight in toy.named_parameters()}
    change(scores)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        Mask.from_scores(toy, scores, 0.1)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (MaskRule("magnitude", 0.1, options={"which": "odd"}), "'largest' or 'smallest'"),
        (MaskRule("magnitude", 0.1, part=1), "part 0 only"),
        (MaskRule("principal", 0.1, options={"rank": 0}), "at least 1"),
        (MaskRule("magnitude"), "needs a density"),
    ],
)
def test_bad_rules_are_refused(toy: torch.nn.Module, rule: MaskRule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mask.from_rule(toy, rule)
