"""Masks of a model: counts, nesting, parts, names, what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiticket.mask import Mask, MaskRule, canonical_name, fingerprint, masked_candidates


@pytest.mark.parametrize(
    ("size", "density", "count"),
    [
        ("0.5B", 0.01, 4_940_162),
        ("1.5B", 0.01, 15_436_967),
        ("1.5B", 0.001, 1_543_578),
        ("1.5B", 1e-5, 15_297),
    ],
)
def test_published_counts(
    qwen: Callable[[str], torch.nn.Module], size: str, density: float, count: int
) -> None:
    model = qwen(size)
    mask = Mask.random(model, density)
    assert mask.numel == {"0.5B": 494_032_768, "1.5B": 1_543_714_304}[size]
    assert mask.nnz == count
    assert Mask.from_rule(model, MaskRule("numpy", density, seed=160)).nnz == count


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5), st.lists(st.integers(1, 40), max_size=3), min_size=1
    ),
    st.sampled_from([0.5, 0.29, 0.1, 0.07, 1.0]),
    st.integers(0, 2**64 - 1),
)
def test_parts_are_disjoint_and_tile_every_tensor(
    shapes: dict[str, list[int]], density: float, seed: int
) -> None:
    tables = {name: tuple(shape) for name, shape in shapes.items()}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in tables}
    for part in range(math.ceil(1 / density - 1e-9)):
        try:
            mask = Mask.from_shapes(tables, MaskRule("random", density, seed, part))
        except ValueError:
            continue
        for name, shape in tables.items():
            flat = mask.indices(name)
            assert flat.dtype == torch.int64
            assert torch.equal(flat, flat.unique())
            if part == 0:
                assert len(flat) == int(math.prod(shape) * density)
            found[name].append(flat)
    for name, shape in tables.items():
        if found[name]:
            assert torch.equal(torch.cat(found[name]).sort().values, torch.arange(math.prod(shape)))


def test_sparser_masks_nest(toy: torch.nn.Module) -> None:
    sparse, dense = Mask.random(toy, 0.03, seed=4), Mask.random(toy, 0.2, seed=4)
    for name in sparse.names:
        assert set(sparse.indices(name).tolist()) < set(dense.indices(name).tolist())


def test_two_tensors_of_one_shape_differ(toy: torch.nn.Module) -> None:
    mask = Mask.random(toy, 0.1)
    assert not torch.equal(mask.indices("layers.0.mlp.weight"), mask.indices("layers.1.mlp.weight"))


def test_model_order_names_and_tied_once(toy: torch.nn.Module) -> None:
    mask = Mask.random(toy, 0.5)
    assert mask.names == [name for name, _ in toy.named_parameters()]
    assert "lm_head.weight" not in mask.names
    assert mask.numel == sum(parameter.numel() for parameter in toy.parameters())
    assert mask.shape("experts") == (4, 9, 24)


def test_tensors_too_small_for_a_position_count_in_numel_alone(toy: torch.nn.Module) -> None:
    mask = Mask.random(toy, 0.01)
    assert "layers.0.norm.weight" not in mask.names
    assert mask.count("layers.0.norm.weight") == 0
    assert mask.indices("layers.0.norm.weight").shape == (0,)
    assert mask.numel == Mask.random(toy, 0.5).numel
    assert mask.density == mask.nnz / mask.numel


def test_scope_by_name_patterns(toy: torch.nn.Module) -> None:
    mask = Mask.random(toy, 0.1, scope="*.mlp.*, embed*")
    assert mask.names == ["embed.weight", *(f"layers.{i}.mlp.weight" for i in range(3))]
    everywhere = Mask.random(toy, 0.1)
    assert torch.equal(mask.indices("embed.weight"), everywhere.indices("embed.weight"))
    with pytest.raises(ValueError, match="covers none"):
        Mask.random(toy, 0.1, scope="nothing.*")


def test_wrappers_and_values_stay_out_of_names(toy: torch.nn.Module) -> None:
    assert canonical_name("module._orig_mod.layers.0._checkpoint_wrapped_module.w") == "layers.0.w"
    assert canonical_name("my_module.w") == "my_module.w"
    wrapped = torch.nn.Module()
    wrapped.module = toy
    toy.layers[0]["mlp"].register_parameter("weight__values", torch.nn.Parameter(torch.zeros(3)))
    toy.register_parameter(
        "counter", torch.nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    )
    assert list(masked_candidates(wrapped)) == Mask.random(toy, 0.5).names
    assert not any(name.endswith("__values") or name == "counter" for name in masked_candidates(toy))


def test_what_cannot_be_a_mask_is_refused(toy: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="would be empty"):
        Mask.random(toy, 1e-6)
    with pytest.raises(ValueError, match="no rule that makes a mask by method 'lottery'"):
        Mask.from_rule(toy, MaskRule("lottery", 0.1))
    with pytest.raises(ValueError, match="needs a density"):
        Mask.from_rule(toy, MaskRule("random"))
    with pytest.raises(ValueError, match="no option 'layers'"):
        Mask.from_rule(toy, MaskRule("random", 0.1, options={"layers": "first"}))


def test_from_indices(toy: torch.nn.Module) -> None:
    mask = Mask.from_indices(toy, {"experts": torch.tensor([5, 2, 5]), "embed.weight": torch.tensor([0])})
    assert mask.names == ["experts", "embed.weight"]  # the model's order
    assert mask.indices("experts").tolist() == [2, 5]
    assert mask.nnz == 3
    assert mask.rule.method == "indices"
    assert not mask.follows_rule


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ({"embed.weight": torch.tensor([1200])}, "between 0 and 1199"),
        ({"embed.weight": torch.tensor([-1])}, "between 0 and 1199"),
        ({"embed.weight": torch.tensor([1.5])}, "whole numbers"),
        ({"embed.weight": torch.ones(50, 24, dtype=torch.bool)}, "whole numbers"),
        ({"nothing": torch.tensor([0])}, "no floating-point parameter 'nothing'"),
        ({}, "would be empty"),
    ],
)
def test_from_indices_refuses(toy: torch.nn.Module, indices: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mask.from_indices(toy, indices)


def test_given_positions_cannot_pose_as_a_rule(toy: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="cannot be called a random mask"):
        Mask.from_indices(toy, {"experts": torch.tensor([0])}, MaskRule("random", 0.1))


def test_copies_and_pickles_for_worker_processes(toy: torch.nn.Module) -> None:
    for method in ("random", "numpy", "columns", "blocks", "layers"):
        mask = Mask.from_rule(toy, MaskRule(method, 0.05, seed=3))
        for twin in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
            assert twin.rule == mask.rule
            assert all(torch.equal(twin.indices(name), mask.indices(name)) for name in mask.names)


def test_returned_indices_are_the_callers_own(toy: torch.nn.Module) -> None:
    mask = Mask.from_indices(toy, {"experts": torch.tensor([2, 5])})
    mask.indices("experts").zero_()
    assert mask.indices("experts").tolist() == [2, 5]


class TestFingerprint:
    def values(self, toy: torch.nn.Module, mask: Mask, dtype: torch.dtype) -> Callable[[str], torch.Tensor]:
        weights = dict(toy.named_parameters())
        return lambda name: weights[name].detach().to(dtype).flatten()[mask.indices(name)]

    def test_one_base_in_bf16_and_fp32(self, toy: torch.nn.Module) -> None:
        mask = Mask.random(toy, 0.1)
        toy.bfloat16()
        in_bf16 = fingerprint(mask, self.values(toy, mask, torch.bfloat16))
        toy.float()
        assert fingerprint(mask, self.values(toy, mask, torch.float32)) == in_bf16

    def test_pinned(self) -> None:
        """Other programs compute it too (docs/ticket-format.md)."""
        import hashlib
        import struct

        shapes = {"b": (2, 2), "a": (3,), "none": (1,)}
        mask = Mask.from_shapes(shapes, MaskRule("random", 0.5))
        found = fingerprint(mask, lambda name: torch.tensor([1.5, -0.0][: mask.count(name)]))
        text = b"multiticket base 1\n"
        text += b'["a",[3],1]\n' + struct.pack("<f", 1.5)
        text += b'["b",[2,2],2]\n' + struct.pack("<2f", 1.5, -0.0)
        assert found == hashlib.sha256(text).hexdigest()

    def test_any_value_at_a_masked_position_matters_and_no_other(self, toy: torch.nn.Module) -> None:
        mask = Mask.random(toy, 0.1)
        before = fingerprint(mask, self.values(toy, mask, torch.float32))
        flat = toy.experts.data.view(-1)
        position = int(mask.indices("experts")[3])
        outside = next(i for i in range(len(flat)) if i not in set(mask.indices("experts").tolist()))
        flat[outside] += 1
        assert fingerprint(mask, self.values(toy, mask, torch.float32)) == before
        flat[position] += 1
        assert fingerprint(mask, self.values(toy, mask, torch.float32)) != before
