"""Attention part by part, there and back, against torch's to the whole."""

from __future__ import annotations

from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from multiticket.generate import attention_parts
from multiticket.generate.attention_parts import Part, find, gradients, put_together

sizes = st.integers(1, 4)


@settings(max_examples=80, deadline=None)
@given(
    sizes,
    sizes,
    st.integers(1, 6),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from(["nothing", "tokens", "rows", "queries", "a part"]),
    st.sampled_from([1, 16, 64, 1 << 22]),
    st.integers(0, 2**31),
)
def test_parts_make_the_whole_there_and_back(
    n: int, heads: int, queries: int, tokens: list[int], hides: str, together: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    width, out_width = 3, 2
    query = drawn(n, heads, queries, width)
    parts = [Part(drawn(n, heads, count, width), drawn(n, heads, count, out_width)) for count in tokens]
    parts.append(Part(drawn(n, heads, 2, width), drawn(n, heads, 2, out_width)))  # never hidden as a whole
    biases: list[Tensor | None] = [None] * len(parts)
    shape = {"tokens": (1, 1), "rows": (n, 1), "queries": (1, queries), "a part": (n, queries)}.get(hides)
    if shape:
        chance = 1.0 if hides == "a part" else 0.5
        hidden = torch.rand(*shape, tokens[0], generator=generator) < chance
        biases[0] = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -torch.inf)
    whole = [
        torch.zeros(n, queries, part.keys.shape[2], dtype=torch.float64) + (0 if bias is None else bias)
        for part, bias in zip(parts, biases, strict=True)
    ]
    expected = F.scaled_dot_product_attention(
        query,
        torch.cat([part.keys for part in parts], 2),
        torch.cat([part.values for part in parts], 2),
        attn_mask=torch.cat(whole, 2)[:, None],
        scale=1.0,
    )
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    expected.backward(grad)

    with torch.no_grad(), patch.object(attention_parts, "TOGETHER", together):
        found = [find(query, part, bias) for part, bias in zip(parts, biases, strict=True)]
        if hides == "a part":
            assert not found[0].out.any()
            assert (found[0].norm == -torch.inf).all()
        out, norm = put_together(found)
        torch.testing.assert_close(out, expected.detach())
        along = (grad * out).sum(-1, keepdim=True)
        of_query = torch.zeros_like(query)
        for part, bias in zip(parts, biases, strict=True):
            asked, (keys, values) = gradients(query, part, bias, norm, grad, along)
            of_query += asked
            torch.testing.assert_close(keys, part.keys.grad)
            torch.testing.assert_close(values, part.values.grad)
        torch.testing.assert_close(of_query, query.grad)
