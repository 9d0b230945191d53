r"""Inequalities and the intervals that they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.tasks.inequalities import as_intervals


@pytest.mark.parametrize(
    ("answer", "intervals"),
    [
        ("x < 2", r"(-\infty,2)"),
        (r"x \ge 2", r"[2,\infty)"),
        (r"x \leq -\frac{1}{2}", r"(-\infty,-\frac{1}{2}]"),
        (r"2 \le x < 5", "[2,5)"),
        (r"5 > x \geq 2", "[2,5)"),
        (r"x < 2 \text{ or } x > 3", r"(-\infty,2)\cup(3,\infty)"),
        ("x<2, x>=3", r"(-\infty,2)\cup[3,\infty)"),
        ("x < 2 or y > 3", None),
        ("x < y", None),
        (r"x > 2 \text{ and } x < 5", None),
        ("2 < x > 5", None),
        ("(2,5)", None),
        ("x = 5", None),
    ],
)
def test_reading(answer: str, intervals: str | None) -> None:
    assert as_intervals(answer) == intervals


@given(st.text(alphabet="x<>=≤≥ 12or,\\le"))
def test_reading_is_total(text: str) -> None:
    as_intervals(text)
