r"""Which part of a completion is its answer."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.tasks.final_answer import LONGEST_ANSWER, final_answer, leaves_a_choice


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{18}.", "18"),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, \frac{2}{3}\right\}}", r"\left\{1, \frac{2}{3}\right\}"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed {18}", "18"),
        (r"$\boxed 18$ apples", "18"),
        (r"\fbox{18}", "18"),
        ("steps\n#### 18", "18"),
        ("steps\n#### 1,234\n", "1,234"),
        (r"\boxed{17} no, \boxed{18}", "18"),
        ("#### 17\nno\n#### 18", "18"),
        (r"\boxed{17}" + "\n#### 18", "18"),
        ("#### 17\n" + r"\boxed{18}", "18"),
        (r"\boxed{\boxed{18}}", "18"),
        ("18", None),
        ("", None),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{18", None),
        (r"\boxed{17} and \boxed{18", None),
        (r"\boxed{\}", None),
        ("####", None),
        ("#### \n18", None),
        (r"\boxed{18} or \boxed{19}", None),
        (r"$\boxed{18}$ or $\boxed{19}$", None),
        (r"\boxed{18} or 19", None),
        (r"\boxed{" + "1" * (LONGEST_ANSWER + 1) + "}", None),
        (r"\boxedx{18}", None),
    ],
)
def test_the_last_finished_answer_counts(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_more_text_after_the_answer_changes_nothing_unless_it_is_a_choice() -> None:
    assert final_answer(r"\boxed{18} dollars, or so I think.") == "18"
    assert final_answer(r"odd or even? \boxed{18}") == "18"


@pytest.mark.parametrize(
    ("answer", "choice"),
    [("18 or 19", True), (r"18\text{ or }19", True), ("18?", True), ("18", False), (r"\text{for}", False)],
)
def test_answers_that_do_not_decide(answer: str, choice: bool) -> None:
    assert leaves_a_choice(answer) is choice


CONTENT = st.recursive(
    st.text(alphabet="0123x+ ", min_size=1, max_size=5),
    lambda inner: inner.map(lambda text: "{" + text + "}"),
)


@given(st.text(max_size=50), CONTENT)
def test_what_is_boxed_last_is_read_whatever_came_before(before: str, content: str) -> None:
    expected = content.strip() or None
    assert final_answer(before + "\n.\n" + r"\boxed{" + content + "}") == expected


@given(
    st.lists(st.sampled_from([r"\boxed", "{", "}", "\\", "####", "\n", "18", " or ", "$", "\x00", "\ud800"]))
)
def test_reading_is_total(pieces: list[str]) -> None:
    answer = final_answer("".join(pieces))
    assert answer is None or 0 < len(answer) <= LONGEST_ANSWER


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 10**6,
        r"\boxed{" + "{" * 10**6 + "}" * 10**6 + "}",
        "#" * 10**7,
        "}" * 10**7,
        "\\" * 10**7,
        r"\boxed" + " " * 10**7,
        r"\boxed{1} or " * 10**6,
    ],
    ids=["unclosed", "deep", "marks", "closings", "backslashes", "spaces", "choices"],
)
def test_hostile_completions_are_read_soon(text: str) -> None:
    started = time.perf_counter()
    assert final_answer(text) is None
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize("text", [None, 18, b"#### 18", [{"role": "assistant", "content": "#### 18"}]])
def test_what_is_not_text_has_no_answer(text: object) -> None:
    assert final_answer(text) is None  # type: ignore[arg-type]
