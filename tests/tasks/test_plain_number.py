r"""Numbers as people write them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.tasks.plain_number import PlainNumber, compare, read_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("-18", -18),
        ("− 18", -18),
        ("+18", 18),
        ("18.", 18),
        ("18.00", 18),
        (".5", Fraction(1, 2)),
        ("1,234", 1234),
        ("1{,}234", 1234),
        (r"1,\!234", 1234),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1/2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\tfrac34", Fraction(3, 4)),
        ("$18", 18),
        (r"\$18.50", Fraction(37, 2)),
        ("-$5", -5),
        ("€18", 18),
        ("18 dollars", 18),
        ("18 miles per hour", 18),
        (r"18\text{ cm}", 18),
        (r"18 \text{ cm}^2", 18),
        ("18 cm^2", 18),
        (r"90^\circ", 90),
        (r"90^{\circ}", 90),
    ],
)
def test_numbers(text: str, value: Fraction | int) -> None:
    assert read_number(text) == PlainNumber(Fraction(value))


@pytest.mark.parametrize("text", [r"50\%", "50%", "50 %"])
def test_percentages(text: str) -> None:
    assert read_number(text) == PlainNumber(Fraction(50), percent=True)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "18x", "18 x", "1 2", "18 or 19", "not 18", "18 million", "18 dozen", r"18\text{ million}", "12,34",
        "1,2", "1/0", "1e5", "18-1", "18!", "2^3", "(18)", "١٨", "²", "1/2/3", "18 cm 19", "1" * 1000, r"\frac12 3",
        "1..2", "--1", "18 is wrong", r"18 \pi", r"\sqrt{2}", "1\x00", "\ud800",
    ],
)  # fmt: skip
def test_what_is_not_plainly_a_number(text: str) -> None:
    assert read_number(text) is None


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_reading_inverts_writing(top: int, below: int) -> None:
    assert read_number(f"{top}/{below}") == PlainNumber(Fraction(top, below))
    assert read_number(f"{top:,}") == PlainNumber(Fraction(top))
    assert read_number(f"${abs(top):,}.00") == PlainNumber(Fraction(abs(top)))


@given(st.text())
def test_reading_is_total(text: str) -> None:
    read_number(text)


def test_comparing() -> None:
    half, fifty = PlainNumber(Fraction(1, 2)), PlainNumber(Fraction(50))
    percent = PlainNumber(Fraction(50), percent=True)
    assert compare(half, percent) is True
    assert compare(fifty, percent) is True
    assert compare(percent, half) is True
    assert compare(half, fifty) is False
    assert compare(percent, PlainNumber(Fraction(49), percent=True)) is False
    assert compare(PlainNumber(Fraction(1, 3)), PlainNumber(Fraction("0.33333333"))) is None
