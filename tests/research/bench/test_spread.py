from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.research.bench.results import with_ratios
from multiticket.research.bench.spread import interval, ratio, spread

times = st.lists(st.floats(0.01, 100), min_size=1, max_size=20)


def test_a_ratio_is_taken_within_each_round() -> None:
    found = ratio([1.0, 20.0, 3.0], [2.0, 40.0, 3.0])  # the second round was slow for both
    assert found["median"] == 0.5
    assert found["interval"] == [0.5, 1.0]


def test_an_interval_by_value() -> None:
    assert interval([2.0] * 9) == (2.0, 2.0)
    low, high = interval(range(1, 101))  # type: ignore[arg-type]
    # order statistics 40 and 61 enclose the median of 100 draws with 95 % probability
    assert low == pytest.approx(40.5, abs=1.5)
    assert high == pytest.approx(60.5, abs=1.5)


def test_a_processs_own_luck_widens_the_interval() -> None:
    """Three processes whose rounds are alike within each: three observations, not thirty."""
    values = [1.0] * 10 + [1.1] * 10 + [1.2] * 10
    assert interval(values) == pytest.approx((1.1, 1.1), abs=0.051)
    assert interval(values, processes=3) == (1.0, 1.2)
    assert interval([2.0, 2.0, 2.0, 2.0], processes=2) == (2.0, 2.0)


@given(times)
def test_an_interval_encloses_the_median_and_lies_within_the_values(seconds: list[float]) -> None:
    low, high = interval(seconds)
    middle = spread(seconds)["median"]
    assert min(seconds) <= low <= middle <= high <= max(seconds)


def test_quartiles_by_value() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "quartile_1": 2.0, "quartile_3": 4.0}


def test_arms_are_compared_to_rivals_of_their_size_only() -> None:
    def arm(kind: str, trained: int, seconds: list[float]) -> dict[str, object]:
        return {"arm": kind, "kind": kind, "trained": trained, "seconds": seconds}

    floor, full = arm("floor", 0, [1.0, 1.0]), arm("full", 5000, [3.0, 3.0])
    matched, sparser, lora = (
        arm("ticket", 99, [2.0, 2.0]),
        arm("ticket", 10, [1.5, 1.5]),
        arm("lora", 100, [4.0, 4.0]),
    )
    compared = with_ratios([floor, full, matched, sparser, lora])
    over = [{kind: found["median"] for kind, found in fields["over"].items()} for fields in compared]
    assert over[0] == {"full": pytest.approx(1 / 3)}
    assert over[1] == {"floor": 3.0}
    assert over[2] == {"floor": 2.0, "full": pytest.approx(2 / 3), "lora": 0.5}
    assert over[3] == {"floor": 1.5, "full": 0.5}
    assert over[4] == {"floor": 4.0, "full": pytest.approx(4 / 3)}
