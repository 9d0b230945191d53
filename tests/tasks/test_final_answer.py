r"""Which part of a completion is its answer."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.tasks.final_answer import (
    LONGEST_ANSWER,
    Found,
    final_answer,
    find_answer,
    leaves_a_choice,
    reference_answer,
)


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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("$\\boxed{18}$\n\n#### Check\nIt fits.", "18"),
        ("$\\boxed{18}$\n\n#### Step 2: check with 3 numbers\n", "18"),
        ("$\\boxed{18}$\n#### 2. Verification", "18"),
        ("$\\boxed{18}$\n##### Note\n###### 3", "18"),
        ("#### 18\n\n#### Explanation\nBecause.", "18"),
        ("#### 18\n##### 19", "18"),
        ("#### **18**", "18"),
        ("#### Solution\nWell.\n#### 18 apples\n", "18 apples"),
        ("#### Evelyn", "Evelyn"),
        ("#### [0, 1/2)\n#### Why", "[0, 1/2)"),
    ],
)
def test_a_markdown_heading_is_no_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $\dfrac{5}{2}$ or $\boxed{2\frac{1}{2}}.$", r"2\frac{1}{2}"),
        (r"$\boxed{3}$ or $\boxed{4}$", "4"),
        (r"$\boxed{3}$ and $\boxed{4", "3"),
        (r"$\boxed{3}$, so (B)? #### see", "3"),
        ("It is.\n#### 1,234", "1,234"),
        (r"$\boxed 2$.", "2"),
    ],
)
def test_a_reference_is_its_last_box_whatever_stands_around_it(solution: str, answer: str) -> None:
    assert reference_answer(solution) == answer


def test_a_solution_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="no final answer in the reference solution 'It is 18'"):
        reference_answer("It is 18")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"$\frac{5}{2}$ or $\boxed{2.5}$", Found("2.5", r"\frac{5}{2}")),
        (r"$x = \frac{5}{2} \text{ or } \boxed{2.5}$", Found("2.5", r"x = \frac{5}{2}")),
        (r"$\boxed{18}$ or $\boxed{19}$", Found("19", "18")),
        (r"$\boxed{18}$", Found("18")),
    ],
)
def test_an_answer_beside_another_is_found_with_it(text: str, found: Found) -> None:
    assert find_answer(text) == found


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
