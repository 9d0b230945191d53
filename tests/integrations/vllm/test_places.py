"""A mask's places in a packed, sharded model: writing k values there equals loading the changed checkpoint."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_models import (
    SHAPES,
    Packed,
    checkpoint,
    equal,
    fingerprint_of,
    loaded,
    state,
    values_of,
    with_values,
)
from torch import Tensor, nn

from multiticket.integrations.vllm.base import checked_places
from multiticket.integrations.vllm.places import locate
from multiticket.integrations.vllm.ranks import OneRank
from multiticket.integrations.vllm.watch import Copy, covers
from multiticket.mask import Mask, MaskRule

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
MASKS = st.builds(
    lambda density, seed: Mask.from_shapes(SHAPES, MaskRule("random", density, seed)),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.integers(0, 100),
)


@settings(deadline=None, max_examples=40)
@given(
    mask=MASKS,
    ranks=st.sampled_from([1, 2, 4]),
    base_dtype=DTYPES,
    engine_dtype=DTYPES,
    seed=st.integers(0, 9),
)
def test_writing_equals_loading_the_changed_checkpoint(
    mask: Mask, ranks: int, base_dtype: torch.dtype, engine_dtype: torch.dtype, seed: int
) -> None:
    base = checkpoint(base_dtype)
    values = values_of(checkpoint(base_dtype, seed=seed + 1), mask)
    everywhere = torch.zeros(mask.nnz, dtype=torch.bool)
    for rank in range(ranks):
        model = loaded(base, rank, ranks, engine_dtype)
        before = state(model)
        places = locate(model, mask, engine_dtype)
        assert equal(state(model), before), "finding the places wrote something"
        everywhere |= places.read()[1]
        saved = places.save()
        places.write(values)
        assert equal(state(model), state(loaded(with_values(base, mask, values), rank, ranks, engine_dtype)))
        places.restore(saved)
        assert equal(state(model), before)
    assert everywhere.all()


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_strided_view_is_followed(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    source = torch.arange(torch.Size(shape).numel()).view(shape)
    view = source
    for dim in range(len(shape)):
        begin = data.draw(st.integers(0, shape[dim] - 1))
        view = view.narrow(dim, begin, data.draw(st.integers(0, shape[dim] - begin)))
    view = view.permute(data.draw(st.permutations(range(len(shape)))))
    memory = torch.full((2 * source.numel() + 3,), -1)
    step = data.draw(st.integers(1, 2))
    destination = memory[1 : 1 + step * view.numel() : step].view(view.shape)
    copy = Copy("a", view.storage_offset(), tuple(view.shape), view.stride(), destination)
    flat = torch.arange(source.numel())
    which, at = covers(copy, flat)
    memory[at] = flat[which]
    assert torch.equal(destination, view)
    assert (memory >= 0).sum() == view.numel()


def test_an_entry_in_two_places_is_written_to_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))

        def load_weights(self, weights) -> None:  # type: ignore[no-untyped-def]
            for _, tensor in weights:
                self.one.data.copy_(tensor)
                self.two.data.copy_(tensor)

    model, mask = Twice(), Mask.from_shapes({"w": (6,)}, MaskRule("random", 0.5))
    places = locate(model, mask, torch.float32)
    places.write(torch.ones(3))
    assert model.one.sum() == model.two.sum() == 3
    assert torch.equal(model.one, model.two)


class Odd(nn.Module):
    """Does something else with the tensor ``w`` than slice and copy it."""

    def __init__(self, load) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 4))
        self.load = load

    def load_weights(self, weights) -> None:  # type: ignore[no-untyped-def]
        for _, tensor in weights:
            self.load(self, tensor)


def _set_item(model: Odd, tensor: Tensor) -> None:
    model.w.data[:] = tensor


def _in_place(model: Odd, tensor: Tensor) -> None:
    tensor.mul_(2)
    model.w.data.copy_(tensor)


def _replace(model: Odd, tensor: Tensor) -> None:
    model.w = nn.Parameter(tensor)


TRANSFORMS = {
    "scaled": lambda model, tensor: model.w.data.copy_(tensor * 2),
    "scaled in place": _in_place,
    "exponential": lambda model, tensor: model.w.data.copy_(-torch.exp(tensor)),
    "another dtype first": lambda model, tensor: model.w.data.copy_(tensor.to(torch.float16)),
    "joined": lambda model, tensor: model.w.data.copy_(torch.cat([tensor[2:], tensor[:2]])),
    "read": lambda model, tensor: model.w.data.copy_(tensor if tensor[0, 0].item() else tensor.t()),
    "broadcast": lambda model, tensor: model.w.data.copy_(tensor[0].expand(4, 4)),
    "broadcast by the copy": lambda model, tensor: model.w.data.copy_(tensor[0]),
    "assigned": _set_item,
    "added": lambda model, tensor: model.w.data.add_(tensor),
    "replaced": _replace,
    "to an integer": lambda model, tensor: torch.zeros(4, 4, dtype=torch.int8).copy_(tensor),
    "fails": lambda model, tensor: model.no_such_thing,
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_loader_that_transforms_is_refused_and_changes_nothing(kind: str) -> None:
    model = Odd(TRANSFORMS[kind])
    kept = model.w
    with pytest.raises(ValueError, match="cannot take a ticket"):
        locate(model, Mask.from_shapes({"w": (4, 4)}, MaskRule("random", 0.5)), torch.float32)
    assert model.w is kept
    assert not model.w.any()


@pytest.mark.parametrize(
    "load", [lambda model, tensor: None, lambda model, tensor: model.w.data[:2].copy_(tensor[:2])]
)
def test_a_loader_that_leaves_something_out_is_refused(load) -> None:  # type: ignore[no-untyped-def]
    mask = Mask.from_shapes({"w": (4, 4)}, MaskRule("random", 1.0))
    with pytest.raises(ValueError, match="leaves out w"):
        checked_places(Odd(load), mask, "0" * 64, OneRank(), torch.float32)


def test_another_base_is_refused() -> None:
    mask = Mask.from_shapes(SHAPES, MaskRule("random", 0.3))
    base = checkpoint()
    model = loaded(base)
    assert checked_places(model, mask, fingerprint_of(base, mask), OneRank(), torch.float32).k == mask.nnz
    with pytest.raises(ValueError, match="another base"):
        checked_places(model, mask, fingerprint_of(checkpoint(seed=1), mask), OneRank(), torch.float32)
    model = loaded(base, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="another base"):
        checked_places(model, mask, fingerprint_of(base, mask), OneRank(), torch.bfloat16)


def test_a_bf16_base_in_an_fp32_engine_is_the_same_base() -> None:
    mask = Mask.from_shapes(SHAPES, MaskRule("random", 0.3))
    base = checkpoint(torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        model = Packed(dtype=dtype)
        model.load_weights(base.items())
        checked_places(model, mask, fingerprint_of(base, mask), OneRank(), dtype)
