r"""math-verify's "equal", held to exact values: what it takes for equal by rounding, and what it is right in."""

import pytest

from multiticket.tasks import math_worker

DIFFERENT = [
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    ("x + 2^{-99}", "x + 2^{-98}"),
    ("(1, 10^{-7})", r"(1, 4 \cdot 10^{-7})"),
    (r"\{1, 10^{-7}\}", r"\{1, 4 \cdot 10^{-7}\}"),
    ("[0, 10^{-9}]", "[0, 10^{-8}]"),
    (r"\begin{pmatrix} 10^{-9} \\ 1 \end{pmatrix}", r"\begin{pmatrix} 10^{-8} \\ 1 \end{pmatrix}"),
    ("0.0000001", "0.0000004"),
    (r"\frac{1}{3000000}", "0.0000003"),
    ("2 = 2", "3 = 3"),
    ("f(2) = 3, f(3) = 4", "f(2) = 3, f(3) = 5"),
]
EQUAL = [
    (r"\frac{1}{3}", "0.333333"),
    (r"\sqrt{2}", "1.414214"),
    ("50", r"50\%"),
    ("0.5", r"50\%"),
    ("x=5", "5"),
    (r"\{1, 2\}", "2, 1"),
    ("y = 2x + 1", "2x - y + 1 = 0"),
    ("xy = 1", r"y = \frac{1}{x}"),
    (r"\text{odd}", "odd"),
    (r"\frac{2}{10^{50}}", "2 \\cdot 10^{-50}"),
    (r"0.1\sqrt{2}", r"\frac{\sqrt{2}}{10}"),
]


@pytest.mark.parametrize(("expected", "given"), DIFFERENT)
def test_what_rounding_makes_equal_is_not(expected: str, given: str) -> None:
    assert not math_worker.equal(expected, given)


@pytest.mark.parametrize(("expected", "given"), EQUAL)
def test_what_is_equal_stays_equal(expected: str, given: str) -> None:
    assert math_worker.equal(expected, given)


@pytest.mark.parametrize(
    ("answer", "value"),
    [(r"\sqrt{2}", "1.41421356237309504880168872421"), ("17.6", "17.6"), ("x", None), (r"\sqrt{-1}", None)],
)
def test_values(answer: str, value: str | None) -> None:
    found = math_worker.value(answer)
    assert found == value if value is None else found is not None and found.startswith(value)
