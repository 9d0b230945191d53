"""Blocks of a weight as a batch of small products: the dense gradient at the mask's positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exactness import assert_gradients_are_the_dense_ones
from torch import nn

import multiticket as mt
from multiticket.sparse.gradient.linear import linear_reference
from multiticket.sparse.hooked.tiles import tiles_of


@settings(deadline=None)
@given(
    down=st.integers(1, 6),
    across=st.integers(1, 6),
    side=st.sampled_from([1, 2, 4, 8]),
    tokens=st.integers(0, 5),
    density=st.floats(0.05, 0.6),
    seed=st.integers(0, 99),
)
def test_they_are_the_dense_gradient(down, across, side, tokens, density, seed):
    layer = nn.Linear(across * side, down * side, bias=False)
    rule = mt.MaskRule("blocks", density, seed=seed, options={"size": side})
    if int(layer.weight.numel() * density) == 0:
        return
    positions = mt.Mask.from_rule(layer, rule).indices("weight").int()
    tiles = tiles_of(positions, *layer.weight.shape, side)
    if tiles is None:
        return
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn(tokens, down * side, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, across * side, generator=generator, dtype=torch.float64)
    found = tiles.gradient(dy, x)[tiles.positions.long()]
    torch.testing.assert_close(found, linear_reference(dy, x, positions))


@pytest.mark.parametrize(
    ("rows", "columns", "way"),
    [(256, 512, "thin"), (512, 256, "thin"), (250, 512, "factors"), (512, 250, "hook")],
)
def test_a_layer_takes_them_where_its_edges_fit(rows, columns, way):
    torch.manual_seed(0)
    layer, twin = nn.Linear(columns, rows, bias=False), nn.Linear(columns, rows, bias=False)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(3, 5, columns, requires_grad=True)
    twin(x).square().sum().backward()
    of_input, x.grad = x.grad, None
    mask = mt.Mask.from_rule(layer, mt.MaskRule("blocks", 0.02, options={"size": 16}))
    attachment = mt.attach(layer, mask, gradient="hooks")
    assert attachment._records[layer].linear.rows is None
    assert attachment.gradient_methods() == {"weight": way}
    layer(x).square().sum().backward()
    assert_gradients_are_the_dense_ones(attachment, {"weight": twin.weight.grad.flatten()})
    torch.testing.assert_close(x.grad, of_input)
