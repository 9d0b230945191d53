"""The compiled way: the definition's numbers for any shape, layout and number of threads; and life without it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multiticket as mt
from multiticket.sparse.gradient import native
from multiticket.sparse.gradient.choice import choose_method
from multiticket.sparse.gradient.crop import row_starts
from multiticket.sparse.gradient.linear import linear_reference, values_grad

needs_compiler = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")


def masked_product(rows: int, columns: int, tokens: int, k: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(rows * columns + tokens)
    positions = torch.randperm(rows * columns, generator=generator)[:k].sort().values.int()
    dy = torch.randn(tokens, rows, generator=generator).to(dtype)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    return dy, x, positions, row_starts(positions, rows, columns)


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 200),
    columns=st.integers(1, 200),
    tokens=st.integers(1, 200),
    share=st.floats(0.0, 1.0),
    threads=st.integers(1, 5),
    most_sums=st.sampled_from([1, 1000, native.MOST_SUMS]),
    dtype=st.sampled_from(native.DTYPES),
)
def test_it_is_the_dense_product_at_the_positions(rows, columns, tokens, share, threads, most_sums, dtype):
    """Tokens and columns are no multiples of the blocks; threads divide tokens, rows or both; fp32 sums."""
    dy, x, positions, starts = masked_product(rows, columns, tokens, int(share * rows * columns), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(native, "LEAST_FOR_THREADS", 0)
        patch.setattr(native, "MOST_SUMS", most_sums)
        found = native.native(dy, x, positions, starts)
    wanted = linear_reference(dy.double(), x.double(), positions)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * tokens**0.5)


@needs_compiler
def test_neither_repeating_nor_layout_changes_a_bit(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    dy, x, positions, starts = masked_product(300, 200, 150, 900, torch.float32)
    one = native.native(dy, x, positions, starts)
    assert torch.equal(native.native(dy, x, positions, starts), one)
    wide = torch.randn(150, 600)
    wide[:, 100:400] = dy
    assert torch.equal(native.native(wide[:, 100:400], x, positions, starts), one)  # rows far apart
    assert torch.equal(native.native(dy.T.contiguous().T, x.T.contiguous().T, positions, starts), one)


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 90),
    tokens=st.integers(1, 150),
    dtype=st.sampled_from(native.DTYPES),
    strided=st.booleans(),
)
def test_an_input_of_factors_gives_the_bits_of_their_product(rows, columns, tokens, dtype, strided):
    dy, x, positions, starts = masked_product(rows, columns, tokens, rows * columns // 2, dtype)
    times = torch.randn(2 * tokens, columns)[:: 2 if strided else 1][:tokens].to(dtype)
    if not strided:
        times = times.contiguous()
    found = native.native(dy, x, positions, starts, [times])
    assert torch.equal(found, native.native(dy, x * times, positions, starts))
    by_token, by_column = torch.rand(tokens, 1).to(dtype), torch.randn(1, columns).to(dtype)
    found = native.native(dy, x, positions, starts, [by_token, by_column])
    assert torch.equal(found, native.native(dy, x * by_token * by_column, positions, starts))


@needs_compiler
def test_infinities_and_nans_are_not_swallowed():
    dy, x, positions, starts = masked_product(64, 64, 70, 64 * 64, torch.float32)
    dy[3, 5], x[4, 7] = float("inf"), float("nan")
    found = native.native(dy, x, positions, starts).view(64, 64)
    assert not found[5].isfinite().any()
    assert found[:, 7].isnan().all()
    rest = found[torch.arange(64) != 5][:, torch.arange(64) != 7]
    assert rest.isfinite().all()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_it_cannot_take_goes_by_the_sampled_product(dtype):
    dy, x, positions, starts = masked_product(20, 30, 40, 50, dtype)
    found = values_grad(dy, x, positions, starts, "native")
    assert torch.equal(found, values_grad(dy, x, positions, starts, "sampled"))


def test_without_a_compiler_the_sampled_product_is_chosen_and_native_is_refused(monkeypatch, tmp_path):
    native.library.cache_clear()
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    try:
        assert native.library() is None
        assert choose_method(torch.device("cpu"), 2048, 512, 10_486) == "sampled"
        model = torch.nn.Linear(8, 8)
        with pytest.raises(ValueError, match="needs a C compiler"):
            mt.attach(model, mt.Mask.random(model, 0.5), gradient="native")
    finally:
        native.library.cache_clear()


@needs_compiler
def test_it_is_built_once_into_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.library.cache_clear()
    try:
        assert native.library() is not None
        [built] = (tmp_path / "cache" / "multiticket").iterdir()
        made = built.stat().st_mtime_ns
        native.library.cache_clear()
        assert native.library() is not None
        assert built.stat().st_mtime_ns == made
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # not writable: a folder of this process's own
        native.library.cache_clear()
        assert native.library() is not None
    finally:
        native.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [0, 1, 5000, 40_000])
def test_writing_is_put_and_torch_is_told(dtype, k):
    dense = torch.randn(300, 200).to(dtype)
    positions = (
        torch.randperm(dense.numel(), generator=torch.Generator().manual_seed(0))[:k].sort().values.int()
    )
    content = torch.randn(k).to(dtype)
    wanted = dense.clone().put_(positions.long(), content)
    version = dense._version
    assert native.can_write(dense, positions, content)
    native.write(dense, positions, content)
    assert torch.equal(dense, wanted)
    assert dense._version > version


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_many_weights_are_written_as_each_by_itself(dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(0)
    shapes, counts = [(300, 200), (7,), (64, 3), (1, 1)], [20_000, 0, 50, 1]
    dense = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    positions = [
        torch.randperm(one.numel(), generator=generator)[:k].sort().values.int()
        for one, k in zip(dense, counts, strict=True)
    ]
    content = torch.randn(sum(counts), generator=generator).to(dtype)
    pieces = content.split(counts)
    wanted = [d.clone().put_(p.long(), c) for d, p, c in zip(dense, positions, pieces, strict=True)]
    native.write_many(dense, positions, content)
    assert all(torch.equal(found, right) for found, right in zip(dense, wanted, strict=True))


def test_only_plain_weights_are_written_past_torch():
    dense, positions, content = torch.randn(6, 4), torch.arange(3).int(), torch.randn(3)
    assert not native.can_write(dense.T, positions, content)
    assert not native.can_write(dense, positions.long(), content)
    assert not native.can_write(dense.bfloat16(), positions, content)
    assert not native.can_write(dense.to("meta"), positions, content)
