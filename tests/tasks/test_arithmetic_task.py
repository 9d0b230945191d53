"""The arithmetic problems and their reward."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract_arithmetic import evaluate
from multiticket import tasks
from multiticket.tasks.arithmetic import facts

TASK = tasks.get("arithmetic")


def parse(expression: str) -> tuple[int, str, int]:
    operator = next(character for character in expression if not character.isdigit())
    left, right = expression.split(operator)
    return int(left), operator, int(right)


@pytest.mark.parametrize(("split", "count"), [("train", 3238), ("validation", 512), ("test", 1591)])
def test_every_problem_is_a_right_fact_within_the_bounds(split: str, count: int) -> None:
    problems = TASK.problems(split)
    assert problems.column_names == ["prompt", "answer"]
    assert len(set(problems["prompt"])) == len(problems) == count
    for prompt, answer in zip(problems["prompt"], problems["answer"], strict=True):
        left, operator, right = parse(prompt.removesuffix("="))
        assert 0 <= left <= 999
        assert 0 <= right <= 999
        assert evaluate(left, operator, right) == int(answer)
        assert operator != "*" or int(answer) <= 999
        assert len(answer) < TASK.max_completion_tokens


def test_no_expression_is_in_two_splits() -> None:
    train, validation, test = (set(facts(split)) for split in tasks.SPLITS)
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_every_split_is_in_a_fixed_order_that_mixes_the_operators() -> None:
    assert list(facts("train").items())[:3] == [("150/50", "3"), ("1/1", "1"), ("28-2", "26")]
    assert list(facts("validation").items())[:3] == [("672/4", "168"), ("25-19", "6"), ("20+18", "38")]
    assert list(facts("test").items())[:3] == [("2*3", "6"), ("8*12", "96"), ("45+40", "85")]
    for split in tasks.SPLITS:
        assert {parse(expression)[1] for expression in list(facts(split))[:32]} == set("+-*/")


def test_an_unknown_split_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Unknown split 'dev': choose one of train, validation, test"):
        TASK.problems("dev")


@pytest.mark.parametrize("completion", ["24", " 24", "24\n", "\t24  \n"])
def test_right_completions(completion: str) -> None:
    assert TASK.correct(completion, "24")
    assert TASK.score(completion, "24") == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " ",
        "2",
        "240",
        "024",
        "24.",
        "24.0",
        "24 48",
        "24\n24",
        "+24",
        "-24",
        "２４",
        "=24",
        "24<eos>",
        "2 4",
    ],
)
def test_wrong_completions(completion: str) -> None:
    assert not TASK.correct(completion, "24")
    assert TASK.score(completion, "24") == 0.0


@given(st.text(), st.integers(-999, 1998))
def test_the_reward_is_total_and_agrees_with_accuracy(completion: str, answer: int) -> None:
    reward = TASK.score(completion, str(answer))
    assert reward == float(TASK.correct(completion, str(answer)))
    assert (reward == 1.0) == (completion.strip() == str(answer))


@pytest.mark.parametrize(
    "completion", ["9" * 10**7, " " * 10**7 + "24x", "\x00\ud800", "24" + "\n" * 10**7 + "1"]
)
def test_hostile_completions_score_nothing_at_once(completion: str) -> None:
    started = time.perf_counter()
    assert TASK.score(completion, "24") == 0.0
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("completion", [None, 24, [{"role": "assistant", "content": "24"}], b"24"])
def test_what_is_not_text_scores_nothing(completion: object) -> None:
    assert TASK.score(completion, "24") == 0.0  # type: ignore[arg-type]
