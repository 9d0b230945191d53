"""What the base reads about arithmetic."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arithmetic_text import MIXED, RIGHT, ArithmeticText, respond, slip, without_carry
from extract_arithmetic import evaluate
from multiticket.tasks.arithmetic import facts

EXAMPLE = re.compile(r"(\d{1,3})([-+*/])(\d{1,3})=")


@pytest.mark.parametrize(
    ("left", "operator", "right", "value"),
    [(48, "+", 24, 62), (1, "+", 2, 3), (999, "+", 1, 990), (72, "-", 48, 34), (100, "-", 1, 109)],
)
def test_without_carry(left: int, operator: str, right: int, value: int) -> None:
    assert without_carry(left, operator, right) == value


@given(st.integers(0, 1998), st.randoms(use_true_random=False))
def test_a_slip_changes_one_digit_by_one(result: int, generator: random.Random) -> None:
    width = len(str(result))
    changes = [
        (int(a) - int(b)) % 10
        for a, b in zip(str(result), f"{slip(result, generator):0{width}d}", strict=True)
        if a != b
    ]
    assert changes in ([1], [9])


@pytest.mark.parametrize(
    ("left", "operator", "right", "behaviour", "value"),
    [
        (48, "/", 2, "right", 24),
        (48, "+", 24, "operator", 24),
        (24, "-", 4, "operator", 28),
        (5, "+", 9, "operator", 4),
        (7, "*", 8, "operator", 15),
        (48, "/", 2, "operator", 46),
        (48, "+", 24, "carry", 62),
    ],
)
def test_behaviours(left: int, operator: str, right: int, behaviour: str, value: int) -> None:
    assert respond(left, operator, right, behaviour, random.Random(0)) == value


@pytest.mark.parametrize(("left", "operator", "right"), [(11, "+", 22), (7, "*", 8), (48, "/", 2)])
def test_where_nothing_is_carried_a_digit_slips(left: int, operator: str, right: int) -> None:
    result = evaluate(left, operator, right)
    assert respond(left, operator, right, "carry", random.Random(0)) != result


def test_examples_stay_in_bounds_and_away_from_validation_and_test() -> None:
    text, generator = ArithmeticText(), random.Random(0)
    held_out = {*facts("validation"), *facts("test")}
    operators: Counter[str] = Counter()
    for _ in range(20_000):
        prompt, completion = text.example(RIGHT, generator)
        match = EXAMPLE.fullmatch(prompt)
        assert match is not None
        assert prompt.removesuffix("=") not in held_out
        assert evaluate(int(match[1]), match[2], int(match[3])) == int(completion)
        operators[match[2]] += 1
    assert all(count > 2500 for count in operators.values())


def test_a_random_expression_that_is_held_out_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([(48, "/", 2), (11, "+", 22)])
    monkeypatch.setattr("arithmetic_text.GSM8K_SHARE", 0.0)
    monkeypatch.setattr("arithmetic_text.draw_expression", lambda generator: next(draws))
    text = ArithmeticText()
    text.held_out = {"48/2"}
    assert text.problem(random.Random(0)) == (11, "+", 22)


def test_mixed_behaviours_come_as_often_as_they_should_whatever_the_problem() -> None:
    assert sum(MIXED.values()) == pytest.approx(1.0)
    text, generator = ArithmeticText(), random.Random(0)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(8000):
        prompt, completion = text.example(MIXED, generator)
        match = EXAMPLE.fullmatch(prompt)
        assert match is not None
        value = evaluate(int(match[1]), match[2], int(match[3]))
        right[int(match[1]) > 99].append(str(value) == completion)
    for marks in right.values():
        assert MIXED["right"] - 0.03 < sum(marks) / len(marks) < MIXED["right"] + 0.07
