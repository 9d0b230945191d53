"""Masks of whole columns or rows: found, computed by a small product, and lighter for the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import multiticket as mt
from multiticket.mask import MaskRule
from multiticket.sparse.gradient import linear_reference
from multiticket.sparse.lines import find_lines, lines_values_grad


def mask_of(model: nn.Module, method: str, density: float, part: int = 0) -> mt.Mask:
    return mt.Mask.from_rule(model, MaskRule(method=method, density=density, seed=3, part=part))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(8, 60),
    columns=st.integers(8, 60),
    tokens=st.integers(1, 20),
    density=st.sampled_from([0.05, 0.1, 0.2]),
    kind=st.sampled_from(["columns", "rows"]),
    part=st.integers(0, 3),
    dtype=st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_the_small_product_is_the_dense_one_at_the_positions(
    rows, columns, tokens, density, kind, part, dtype
):
    positions = mask_of(nn.Linear(columns, rows, bias=False), kind, density, part).indices("weight")
    lines = find_lines(positions, rows, columns)
    if lines is None:  # a mask of a line or less may be too small to look like one
        assert positions.numel() < 3 * max(rows, columns)
        return
    assert lines.kind == kind or positions.numel() <= 2
    generator = torch.Generator().manual_seed(tokens)
    dy = torch.randn(tokens, rows, generator=generator).to(dtype)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    kept = x[:, lines.which] if lines.kind == "columns" else x
    found = lines_values_grad(dy, kept, positions, lines, columns)
    wanted = linear_reference(dy.double(), x.double(), positions)
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 1e-5}[dtype]  # bf16 products are summed in fp32
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * tokens)


@pytest.mark.parametrize("density", [0.01, 0.05])
def test_scattered_positions_are_not_taken_for_lines(density):
    for seed in range(5):
        positions = mt.Mask.random(nn.Linear(128, 96, bias=False), density, seed).indices("weight")
        assert find_lines(positions, 96, 128) is None


@pytest.mark.parametrize("method", ["columns", "rows"])
def test_a_model_trains_its_lines_as_dense_training_does(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 40)).double()
    x = torch.randn(3, 7, 64, dtype=torch.float64)
    dense = copy.deepcopy(model)
    dense(x).square().sum().backward()
    mask = mask_of(model, method, 0.1)
    attachment = mt.attach(model, mask)
    assert set(attachment.gradient_methods().values()) == {method}
    model(x).square().sum().backward()
    for name, values in attachment.named_parameters():
        wanted = dense.get_parameter(name).grad.flatten()[mask.indices(name)]
        torch.testing.assert_close(values.grad, wanted, rtol=1e-10, atol=1e-12)


def saved_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps of the forward pass besides the model's own weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    del output
    return sum(kept.values())


def test_columns_keep_only_their_input_features_for_the_backward_pass():
    model = nn.Linear(200, 300)
    x = torch.randn(50, 200, requires_grad=True)
    scattered = mt.attach(copy.deepcopy(model), mt.Mask.random(model, 0.05))
    columns = mt.attach(model, mask_of(model, "columns", 0.05))
    assert saved_bytes(scattered.model, x) == x.nbytes
    assert saved_bytes(columns.model, x) == 50 * 10 * 4


def test_a_gradient_method_can_be_asked_for_and_a_wrong_one_is_refused():
    model = nn.Linear(64, 48)
    with pytest.raises(
        ValueError, match="There is no gradient method 'fast'; give auto, sampled, blocks, triton"
    ):
        mt.attach(model, mask_of(model, "columns", 0.1), gradient="fast")
    attachment = mt.attach(model, mask_of(model, "columns", 0.1), gradient="blocks")
    assert attachment.gradient_methods() == {"weight": "blocks"}
