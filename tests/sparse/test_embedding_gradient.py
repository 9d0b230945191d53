"""The embedding's k gradients against the plain reference, alone and in a model with a tied head."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy_models import positions_of

import multiticket as mt
from multiticket.sparse.gradient import embedding as embedding_gradient
from multiticket.sparse.gradient.crop import row_starts


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 50),
    width=st.integers(1, 20),
    count=st.integers(1, 60),
    share=st.floats(0.0, 1.0),
    padded=st.booleans(),
)
def test_embedding_gradient_is_the_dense_one_at_the_positions(rows, width, count, share, padded):
    """Tokens repeat, rows with positions never occur, and rows that occur have none."""
    positions = positions_of(rows, width, max(1, int(share * rows * width)), seed=count)
    starts = row_starts(positions, rows, width)
    generator = torch.Generator().manual_seed(width)
    tokens = torch.randint(0, rows, (count,), generator=generator)
    dy = torch.randn(count, width, generator=generator, dtype=torch.float64)
    padding = int(tokens[0]) if padded else -1
    found = embedding_gradient.embedding_values_grad(dy, tokens, positions, starts, padding)
    wanted = embedding_gradient.embedding_reference(dy, tokens, positions, rows, padding)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    on_a_device = embedding_gradient.sum_by_slot(dy, tokens, positions, rows, padding)
    torch.testing.assert_close(on_a_device, wanted, rtol=1e-12, atol=1e-12)
    never = ~torch.isin(positions // width, tokens)
    assert not found[never].any()


def test_the_operator_is_registered_as_torch_library_asks():
    positions = positions_of(8, 6, 10, seed=0)
    arguments = (torch.randn(4, 6), torch.tensor([1, 5, 1, 7]), positions, row_starts(positions, 8, 6), -1)
    torch.library.opcheck(
        embedding_gradient.embedding_values_grad, arguments, test_utils=("test_schema", "test_faketensor")
    )


class Tied(nn.Module):
    """A table that is looked up and is the head."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8, dtype=torch.float64, **options)
        self.head = nn.Linear(8, 30, bias=False, dtype=torch.float64)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens).tanh())


@pytest.mark.parametrize(
    "options",
    [{}, {"padding_idx": 3}, {"padding_idx": -2}, {"scale_grad_by_freq": True}, {"sparse": True}],
    ids=str,
)
@settings(max_examples=15, deadline=None)
@given(tokens=st.lists(st.integers(0, 29), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_a_tied_table_gets_both_gradients(options, tokens, seed):
    torch.manual_seed(seed)
    model = Tied(**options)
    twin = copy.deepcopy(model)
    twin.table.sparse = False  # a sparse and a dense gradient do not add up in the plain model
    mask = mt.Mask.random(model, 0.3, seed=seed)
    attachment = mt.attach(model, mask)
    for each in (model, twin):
        each(torch.tensor(tokens)).pow(3).sum().backward()
    (values,) = attachment.parameters()
    wanted = twin.table.weight.grad.flatten()[mask.indices("table.weight")]
    torch.testing.assert_close(values.grad, wanted, rtol=1e-10, atol=1e-12)


def test_a_table_that_is_renormalised_in_place_is_refused():
    model = Tied(max_norm=0.9)
    with pytest.raises(ValueError, match="max_norm, which rewrites whole rows in place, outside the mask"):
        mt.attach(model, mt.Mask.random(model, 0.3))
    assert model.table.weight.requires_grad
