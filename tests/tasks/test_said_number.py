"""The number that a model's words end with."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.tasks.said_number import said_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("24", 24),
        ("24.", 24),
        ("**24**", 24),
        ("The answer is 24!", 24),
        (r"\\boxed{24}", 24),
        ("48 / 2 = 24", 24),
        ("48/2 equals 24.\n\n24", 24),
        ("It is 1,234.", 1234),
        ("It is 24.50", Fraction(49, 2)),
        ("It is -5", -5),
        ("It is −5.", -5),
        ("7 - 12 = -5", -5),
        ("12, 34", 34),
        ("24 is the 2nd answer", 24),
        ("24 with x2", 24),
        ("12 dollars", 12),
        ("What is 48 / 2?", None),
        ("48/2", None),
        ("45 + 40", None),
        ("7 - 2", None),
        ("6 \\times 4", None),
        ("2nd", None),
        ("", None),
        ("twenty-four", None),
        ("1" * 60, None),
    ],
)
def test_reading(text: str, number: Fraction | int | None) -> None:
    assert said_number(text) == number


@given(st.integers(-(10**9), 10**9), st.sampled_from(["", ".", "\n", " apples.", "**"]))
def test_what_is_said_last_is_read(number: int, end: str) -> None:
    assert said_number(f"First 12 + 3 = 15. So it is {number}{end}") == number
    assert said_number(f"So it is {number:,}{end}") == number


@given(st.text())
def test_reading_is_total(text: str) -> None:
    said_number(text)


def test_long_texts_are_read_soon() -> None:
    assert said_number("1 + " * 10**6) is None
    assert said_number(None) is None  # type: ignore[arg-type]
