"""Cropping to the rows and columns that a mask touches: the same gradient, and less kept for backward."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import multiticket as mt
from multiticket.sparse.gradient import native
from multiticket.sparse.gradient.crop import crop, row_starts


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), data=st.data())
def test_a_crop_names_the_same_entries(rows, columns, data):
    chosen = data.draw(st.sets(st.integers(0, rows * columns - 1)))
    positions = torch.tensor(sorted(chosen), dtype=torch.int32)
    found = crop(positions, row_starts(positions, rows, columns), rows, columns)
    weight = torch.arange(rows * columns).view(rows, columns)
    if found.rows is not None:
        weight = weight[found.rows]
    if found.columns is not None:
        weight = weight[:, found.columns]
    assert tuple(weight.shape) == found.shape
    assert torch.equal(weight.flatten()[found.positions.long()], positions.long())
    assert torch.equal(found.starts, row_starts(found.positions, *found.shape))


@pytest.mark.parametrize(("method", "density"), [("columns", 0.1), ("rows", 0.1), ("random", 0.002)])
@pytest.mark.parametrize("gradient", ["auto", "sampled", "blocks"])
def test_cropped_layers_train_as_the_dense_ones(method, density, gradient):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.GELU(), nn.Linear(60, 50, bias=False)).double()
    twin = copy.deepcopy(model)
    rule = mt.MaskRule(method=method, density=density, seed=3)
    mask = mt.Mask.from_rule(model, rule)
    attachment = mt.attach(model, mask, gradient=gradient)
    x = torch.randn(3, 7, 40, dtype=torch.float64)
    for each in (model, twin):
        each(x).pow(3).sum().backward()
    dense = dict(twin.named_parameters())
    for name, values in attachment.named_parameters():
        wanted = dense[name].grad.flatten()[mask.indices(name)]
        torch.testing.assert_close(values.grad, wanted, rtol=1e-10, atol=1e-12)


def saved_bytes(method: str, density: float) -> int:
    """What one linear layer (256 to 64) with such a mask keeps for backward, without its weight."""
    layer = nn.Linear(256, 64, bias=False)
    attachment = mt.attach(layer, mt.Mask.from_rule(layer, mt.MaskRule(method=method, density=density)))
    own = {layer._parameters["weight"].untyped_storage().data_ptr()}
    own |= {values.untyped_storage().data_ptr() for values in attachment.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(torch.randn(100, 256))
    out.sum().backward()
    return sum(saved.values())


def test_of_the_input_only_the_masks_columns_are_kept():
    whole = 100 * 256 * 4
    assert saved_bytes("random", 0.1) == whole
    assert (
        saved_bytes("columns", 0.05) <= 14 * 100 * 4
    )  # 12.8 columns: at most the first and the last are partial
    assert saved_bytes("rows", 0.05) == whole
    assert saved_bytes("random", 0.0005) <= 8 * 100 * 4  # 8 entries


def test_the_methods_are_reported_and_can_be_set():
    model = nn.ModuleDict(
        {"table": nn.Embedding(30, 8), "norm": nn.LayerNorm(8), "up": nn.Linear(600, 500, bias=False)}
    )
    attachment = mt.attach(model, mt.Mask.random(model, 0.5))
    assert attachment.gradient_methods() == {
        "table.weight": "lookup",
        "norm.weight": "dense",
        "norm.bias": "dense",
        "up.weight": "blocks",
    }
    attachment.detach()
    attachment = mt.attach(model, mt.Mask.random(model, 0.2), gradient="sampled")
    assert attachment.gradient_methods()["up.weight"] == "sampled"
    attachment.detach()
    attachment = mt.attach(model, mt.Mask.random(model, 0.01))
    assert attachment.gradient_methods()["up.weight"] == ("native" if native.library() else "sampled")
    attachment.detach()
    with pytest.raises(ValueError, match="no gradient method 'fast'; choose auto, native"):
        mt.attach(model, mt.Mask.random(model, 0.2), gradient="fast")
    assert all(parameter.requires_grad for parameter in model.parameters())
