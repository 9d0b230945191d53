"""Reading and comparing answers between tags."""

import difflib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.tasks.sorted_tags import CLOSE, LONGEST_BLOCK, OPEN, read, similarity, wrap

ANSWER = wrap(["AnnLee", "BobRay", "CyFox"])
NAMES = st.lists(st.from_regex(r"[A-Z][a-z]{1,3}[A-Z][a-z]{1,3}", fullmatch=True), min_size=1, max_size=5)


def test_the_block_is_written_as_the_paper_has_it() -> None:
    assert ANSWER == "<alphabetical_sorted>\nAnnLee\nBobRay\nCyFox\n</alphabetical_sorted>"


@given(NAMES)
def test_reading_inverts_writing(names: list[str]) -> None:
    assert read(wrap(names)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Let me think.\n" + wrap(["A", "B"]) + "\nDone.", ["A", "B"]),
        (f"{OPEN} A \n\n  B\n{CLOSE}", ["A", "B"]),
        (wrap(["A"]) + wrap(["B"]), ["B"]),
        (wrap(["A"]) + OPEN + "\nB", ["A"]),
        (OPEN + "\nA\n" + wrap(["B"]), ["B"]),
        (wrap(["A"]) + CLOSE, ["A", CLOSE]),
        ("", []),
        ("A\nB", []),
        (OPEN + "\nA\nB", []),
        ("A\nB\n" + CLOSE, []),
        (CLOSE + "\nA\n" + OPEN, []),
        (OPEN + CLOSE, []),
        (OPEN + "\n \n" + CLOSE, []),
        (wrap(["A"]).upper(), []),
    ],
)
def test_the_last_complete_block_counts(text: str, names: list[str]) -> None:
    assert read(text) == names


def test_a_block_of_the_longest_length_is_read_and_a_longer_one_is_not() -> None:
    assert read(OPEN + "x" * LONGEST_BLOCK + CLOSE) == ["x" * LONGEST_BLOCK]
    assert read(OPEN + "x" * (LONGEST_BLOCK + 1) + CLOSE) == []


@given(NAMES, NAMES)
def test_the_reward_is_the_difflib_ratio_to_the_fourth_power(
    given_names: list[str], expected: list[str]
) -> None:
    ratio = difflib.SequenceMatcher(
        None, "\n".join(given_names).lower(), "\n".join(expected).lower(), autojunk=False
    ).ratio()
    assert similarity(wrap(given_names), wrap(expected)) == ratio**4


def test_known_rewards() -> None:
    assert similarity(ANSWER, ANSWER) == 1.0
    assert similarity(ANSWER.replace("AnnLee", "annlee"), ANSWER) == 1.0
    swapped = similarity(wrap(["AnnLee", "CyFox", "BobRay"]), ANSWER)
    assert swapped == pytest.approx((2 * len("annlee\nbobray") / (2 * len("annlee\nbobray\ncyfox"))) ** 4)
    assert similarity("AnnLee\nBobRay\nCyFox", ANSWER) == 0.0


@given(
    st.lists(st.sampled_from(["<", ">", "/", OPEN, CLOSE, "\n", "AnnLee", "é", "\x00", "\u2028", "\ud800"]))
)
def test_the_reward_is_total_and_bounded(pieces: list[str]) -> None:
    completion = "".join(pieces)
    assert 0.0 <= similarity(completion, ANSWER) <= 1.0
    assert (similarity(completion, ANSWER) > 0) <= (OPEN in completion and CLOSE in completion)


@pytest.mark.parametrize(
    "completion",
    [
        "A" * 10**7,
        OPEN * 300_000,
        CLOSE * 300_000,
        (OPEN + CLOSE) * 200_000,
        OPEN * 200_000 + CLOSE * 200_000,
        OPEN + "A\n" * 5 * 10**6 + CLOSE,
        OPEN + "a\n" * (LONGEST_BLOCK // 2) + CLOSE,
        "<" * 10**7,
    ],
    ids=[
        "no tag",
        "openings",
        "closings",
        "empty blocks",
        "nested",
        "huge block",
        "longest block",
        "brackets",
    ],
)
def test_hostile_completions_score_little_and_soon(completion: str) -> None:
    started = time.perf_counter()
    assert similarity(completion, ANSWER) < 0.1
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("completion", [None, 3, b"x", [ANSWER]])
def test_what_is_not_text_scores_nothing(completion: object) -> None:
    assert similarity(completion, ANSWER) == 0.0  # type: ignore[arg-type]
