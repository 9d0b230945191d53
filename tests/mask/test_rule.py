"""The rule: what it accepts, how it is written, which places a part takes."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.mask import MaskRule
from multiticket.mask.rule import places

densities = st.one_of(
    st.sampled_from([1.0, 0.5, 0.29, 0.1, 0.07, 0.01, 0.001, 1e-5]),
    st.floats(1e-4, 1.0),
)


@pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan"), float("inf"), True, "0.01"])
def test_density_out_of_bounds_is_refused_in_a_sentence(density: object) -> None:
    with pytest.raises(ValueError, match="Density must be above 0 and at most 1"):
        MaskRule("random", density)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"seed": True}, "seed"),
        ({"part": -1}, "part"),
        ({"part": 100}, "parts 0 to 99"),
        ({"scope": ""}, "scope"),
        ({"version": 2}, "version"),
        ({"version": True}, "version"),
        ({"method": ""}, "method"),
        ({"options": {"x": {1, 2}}}, "JSON"),
        ({"options": {"x": float("nan")}}, "JSON"),
        ({"options": {1: "x"}}, "JSON"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskRule(**{"method": "random", "density": 0.01, **fields})  # type: ignore[arg-type]


@given(densities, st.integers(0, 2**64 - 1), st.dictionaries(st.text(), st.integers() | st.text()))
def test_json_identity(density: float, seed: int, options: dict[str, object]) -> None:
    rule = MaskRule("columns", density, seed, 0, "*.weight", options=options)
    text = rule.to_json()
    assert MaskRule.from_json(text) == rule
    assert MaskRule.from_json(text).to_json() == text
    assert hash(MaskRule.from_json(text)) == hash(rule)
    assert MaskRule.from_json(json.dumps(json.loads(text), indent=2)) == rule


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"method":"random"}', "[" * 100_000])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mask rule"):
        MaskRule.from_json(text)


def test_options_are_copied() -> None:
    options = {"layers": [0]}
    rule = MaskRule("layers", 0.01, options=options)
    options["layers"].append(1)
    assert rule.options == {"layers": [0]}


@given(st.integers(1, 10**6), densities)
def test_part_0_has_the_published_count_and_parts_tile(numel: int, density: float) -> None:
    parts = math.ceil(1 / Fraction(repr(density)))
    assert places(numel, density) == (0, int(numel * density))
    if parts <= 2000:
        ends = [places(numel, density, part) for part in range(parts)]
        assert ends[0][0] == 0
        assert ends[-1][1] == numel
        assert all(before[1] == after[0] for before, after in pairwise(ends))
        assert all(start <= stop for start, stop in ends)


def test_float_rounding_touches_part_0_alone() -> None:
    """100 * 0.29 is 28.999999999999996 in floats; the published rule gives 28, and part 1 begins there."""
    assert places(100, 0.29, 0) == (0, 28)
    assert places(100, 0.29, 1) == (28, 58)
    assert places(100, 0.29, 2) == (58, 87)


@given(st.integers(1, 2**40), densities, densities)
def test_sparser_part_0_is_a_prefix_of_a_denser_one(numel: int, one: float, other: float) -> None:
    sparse, dense = sorted((one, other))
    assert places(numel, sparse)[1] <= places(numel, dense)[1]
