"""The controls: the same budget as random, in the structure they name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiticket.mask import Mask, MaskRule
from multiticket.mask.selectors import SELECTORS, module_kind

SHAPES = {
    "embed.weight": (50, 24),
    "layers.0.self_attn.q.weight": (24, 24),
    "layers.0.mlp.up.weight": (40, 24),
    "layers.0.norm.weight": (24,),
    "layers.1.self_attn.q.weight": (24, 24),
    "layers.1.mlp.up.weight": (40, 24),
    "layers.1.norm.weight": (24,),
    "experts": (3, 20, 7),
    "scale": (),
}


def mask(method: str, density: float = 0.1, seed: int = 0, part: int = 0, **options: object) -> Mask:
    return Mask.from_shapes(SHAPES, MaskRule(method, density, seed, part, options=options))


def test_numpy_is_the_authors_recipe_draw_for_draw() -> None:
    generator = np.random.default_rng(42)
    found = mask("numpy", 0.1, seed=42)
    for name, shape in SHAPES.items():
        size = math.prod(shape)
        flat = np.sort(generator.choice(size, size=int(size * 0.1), replace=False))
        assert found.indices(name).tolist() == flat.tolist()


def test_numpy_is_pinned() -> None:
    """numpy's own stream, as its release 2.4 gives it; should it ever change, this says so."""
    found = Mask.from_shapes({"w": (1000,), "v": (1000,)}, MaskRule("numpy", 0.005, seed=0))
    assert found.indices("w").tolist() == [269, 307, 510, 635, 847]
    assert found.indices("v").tolist() == [503, 606, 647, 810, 910]


def test_numpy_has_no_second_part() -> None:
    with pytest.raises(ValueError, match="part 0 only"):
        mask("numpy", part=1)


@pytest.mark.parametrize("method", sorted(SELECTORS))
@settings(max_examples=15, deadline=None)
@given(st.sampled_from([0.02, 0.05, 0.1, 0.13]), st.integers(0, 5))
def test_every_method_spends_the_same_budget(method: str, density: float, seed: int) -> None:
    found = mask(method, density, seed)
    assert found.nnz == mask("random", density).nnz == sum(len(found.indices(name)) for name in found.names)
    assert found.numel == sum(math.prod(shape) for shape in SHAPES.values())
    for name in found.names:
        flat = found.indices(name)
        assert torch.equal(flat, flat.unique())
        assert int(flat[0]) >= 0
        assert int(flat[-1]) < math.prod(SHAPES[name])
        if method not in ("layers", "modules"):
            assert len(flat) == int(math.prod(SHAPES[name]) * density)


@pytest.mark.parametrize("method", ["columns", "rows", "blocks"])
def test_parts_of_a_structure_tile(method: str) -> None:
    parts = [mask(method, 0.3, 1, part) for part in range(4)]
    for name, shape in SHAPES.items():
        together = torch.cat([part.indices(name) for part in parts])
        assert torch.equal(together.sort().values, torch.arange(math.prod(shape)))


def test_columns_and_rows_are_whole_but_for_one() -> None:
    for name in ("embed.weight", "experts"):
        size, width = math.prod(SHAPES[name]), SHAPES[name][-1]
        height = size // width
        by_column = torch.bincount(mask("columns", 0.35).indices(name) % width, minlength=width)
        by_row = torch.bincount(mask("rows", 0.35).indices(name) // width, minlength=height)
        for counts, whole in ((by_column, height), (by_row, width)):
            assert int(((counts > 0) & (counts < whole)).sum()) <= 1
            assert int((counts == whole).sum()) == int(size * 0.35) // whole


def test_columns_differ_by_seed_and_tensor() -> None:
    def columns(seed: int, name: str) -> set[int]:
        return set((mask("columns", 0.2, seed).indices(name) % 24).tolist())

    assert columns(0, "layers.0.mlp.up.weight") != columns(1, "layers.0.mlp.up.weight")
    assert columns(0, "layers.0.mlp.up.weight") != columns(0, "layers.1.mlp.up.weight")


def test_columns_of_many_seeds_are_uniform() -> None:
    counts = torch.zeros(24)
    for seed in range(400):
        found = Mask.from_shapes({"w": (40, 24)}, MaskRule("columns", 0.25, seed))
        counts += torch.bincount(found.indices("w") % 24, minlength=24) / 40
    # 400 draws of 6 columns from 24: mean 100, standard deviation sqrt(400 * 0.25 * 0.75) = 8.7
    assert float((counts - 100).abs().max()) < 4 * 8.7
    assert 0.3 < float(((counts - 100) ** 2).sum() / 75 / 23) < 2.2


def test_blocks_are_whole_but_for_one() -> None:
    flat = mask("blocks", 0.25, size=8).indices("layers.0.mlp.up.weight")
    block = flat // 24 // 8 * 3 + flat % 24 // 8
    counts = torch.bincount(block, minlength=15)
    assert sorted(counts.tolist(), reverse=True) == [64, 64, 64, 48] + [0] * 11
    vector = mask("blocks", 0.5, size=8).indices("layers.0.norm.weight")
    assert sorted(torch.bincount(vector // 8, minlength=3).tolist(), reverse=True) == [8, 4, 0]


def test_blocks_at_the_edge_are_cut_off() -> None:
    whole = Mask.from_shapes({"w": (10, 7)}, MaskRule("blocks", 1.0, options={"size": 4}))
    assert whole.indices("w").tolist() == list(range(70))


@pytest.mark.parametrize(("wanted", "number"), [("first", "0"), ("last", "1"), ([1], "1")])
def test_layers(wanted: object, number: str) -> None:
    found = mask("layers", 0.1, layers=wanted)
    assert {name.split(".")[1] for name in found.names} == {number}
    shares = {name: found.count(name) / math.prod(SHAPES[name]) for name in found.names}
    inside = found.nnz / sum(math.prod(s) for n, s in SHAPES.items() if n.startswith(f"layers.{number}."))
    for name, share in shares.items():
        assert abs(share - inside) <= 1 / math.prod(SHAPES[name])


@pytest.mark.parametrize("kind", ["attention", "mlp", "embeddings"])
def test_modules(kind: str) -> None:
    found = mask("modules", 0.1, modules=kind)
    assert {module_kind(name) for name in found.names} == {kind}


def test_module_kinds_of_usual_names() -> None:
    kinds = {
        "model.embed_tokens.weight": "embeddings",
        "lm_head.weight": "embeddings",
        "transformer.wte.weight": "embeddings",
        "model.layers.0.self_attn.q_proj.bias": "attention",
        "model.layers.0.self_attn.q_norm.weight": "norms",
        "transformer.h.0.attn.c_attn.weight": "attention",
        "transformer.h.0.ln_1.bias": "norms",
        "model.layers.0.post_attention_layernorm.weight": "norms",
        "model.layers.0.mlp.experts.gate_up_proj": "mlp",
        "backbone.layers.0.mixer.in_proj.weight": None,
    }
    assert {name: module_kind(name) for name in kinds} == kinds


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("modules", {"modules": "norms"}, "do not fit into the 48 entries of norms"),
        ("modules", {"modules": "heads"}, "must be among"),
        ("modules", {"modules": 3}, "must be among"),
        ("modules", {"modules": [["mlp"]]}, "must be among"),
        ("layers", {"layers": [7]}, "no layer 7; it has layers 0 to 1"),
        ("layers", {"layers": "middle"}, "must be 'first', 'last'"),
        ("layers", {"layers": []}, "must be 'first', 'last'"),
        ("layers", {"depth": 1}, "no option 'depth'; it takes layers"),
        ("blocks", {"size": 0}, "at least 1"),
        ("columns", {"size": 3}, "it takes none"),
    ],
)
def test_what_a_method_refuses(method: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask(method, 0.1, **options)


def test_layers_needs_numbered_layers() -> None:
    with pytest.raises(ValueError, match="numbered layers"):
        Mask.from_shapes({"w": (10, 10)}, MaskRule("layers", 0.1))


def test_the_largest_stack_of_layers_counts() -> None:
    shapes = {"vision.blocks.5.w": (10, 10), "text.layers.0.w": (20, 20), "text.layers.1.w": (20, 20)}
    found = Mask.from_shapes(shapes, MaskRule("layers", 0.1, options={"layers": "last"}))
    assert found.names == ["text.layers.1.w"]
