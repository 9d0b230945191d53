"""k columns of an activation, and their sums: the definition's numbers by the kernel and by torch alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiticket.sparse.gradient import native
from multiticket.sparse.gradient.columns import MOST_TAKEN, column_sums, take_columns


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(1, 90),
    features=st.integers(1, 200),
    share=st.floats(0.0, 1.0),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    index=st.sampled_from([torch.int32, torch.int64]),
    layout=st.sampled_from(["whole", "wide", "transposed"]),
    batched=st.booleans(),
)
def test_they_are_the_definition(tokens, features, share, dtype, index, layout, batched):
    generator = torch.Generator().manual_seed(tokens * features)
    positions = torch.randperm(features, generator=generator)[: int(share * features)].sort().values.to(index)
    x = torch.randn(tokens, 3 * features, generator=generator).to(dtype)[:, features : 2 * features]
    x = {"whole": x.contiguous(), "wide": x, "transposed": x.T.contiguous().T}[layout]
    x = torch.stack([x, x]) if batched else x
    taken = take_columns(x, positions)
    assert taken.dtype == dtype
    assert torch.equal(taken, x[..., positions.long()])
    found, wide = column_sums(x, positions), torch.promote_types(dtype, torch.float32)
    assert (found.dtype, found.shape) == (wide, positions.shape)
    rows = x.reshape(-1, features)[:, positions.long()].double()
    torch.testing.assert_close(found.double(), rows.sum(0), rtol=1e-5, atol=1e-5 * tokens)
    torch.testing.assert_close(
        column_sums(x, positions, taken).double(), (rows * rows).sum(0), rtol=1e-5, atol=1e-5 * tokens
    )


@pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
def test_the_kernel_takes_few_columns_and_torch_the_rest(monkeypatch):
    asked = []
    for name in ("columns", "column_sums"):
        plain = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, plain=plain: asked.append(a) or plain(*a))
    few, many = torch.arange(4).int(), torch.arange(60).int()
    x = torch.randn(8, 100)
    assert (take_columns(x, few).shape, column_sums(x, few).shape) == ((8, 4), (4,))
    assert len(asked) == 2
    take_columns(x, many), column_sums(x, many), take_columns(x.double(), few), take_columns(x, few.long())
    long = torch.randn(1, 100).expand(MOST_TAKEN, 100)
    take_columns(long, few), column_sums(x.to("meta"), few.to("meta"))
    assert len(asked) == 2


def test_sums_do_not_drift_over_many_tokens():
    """Numbers of one sign: a running sum in fp32 would lose the last digits."""
    dy = torch.rand(50_000, 9, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([2, 5], dtype=torch.int32)
    wanted = dy.double()[:, [2, 5]].sum(0)
    torch.testing.assert_close(column_sums(dy, positions).double(), wanted, rtol=2e-7, atol=0)
