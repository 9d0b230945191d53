"""Alphabet Sort as a conversation."""

import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket import tasks
from multiticket.tasks.alphabet_sort import split_name
from multiticket.tasks.alphabet_sort_turns import FIRST, LATER, NEW, AlphabetSortTurns, make_problem
from multiticket.tasks.sorted_tags import best_attempt, blocks

TASK = AlphabetSortTurns(3)
NAMES = ["AnnLee", "BobRay", "CyFox", "DeeAdams", "EvePoe", "FayOrr", "GusNye", "HalMoe", "IdaLow"]


def block(lines: list[str], tag: str) -> str:
    return "\n".join([f"<{tag}>", *lines, f"</{tag}>"])


def perfect(answer: str) -> list[str]:
    lists = json.loads(answer)["expected"]
    return [block(lines, LATER if turn else FIRST) for turn, lines in enumerate(lists)]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 99))
def test_a_conversation_is_as_the_environment_has_it(counts: list[int], seed: int) -> None:
    prompt, answer = make_problem(NAMES, counts, random.Random(seed))
    by = "FIRST" if " by FIRST name: " in prompt else "LAST"
    loaded = json.loads(answer)
    assert len(loaded["expected"]) == len(counts) == len(loaded["follow_ups"]) + 1
    known = 0
    for turn, (count, lines) in enumerate(zip(counts, loaded["expected"], strict=True)):
        fresh = NAMES[known : known + count]
        known += count
        bare = [line.removesuffix(NEW) for line in lines]
        assert bare == sorted(NAMES[:known], key=lambda name: split_name(name)[by == "LAST"])
        assert {name for name, line in zip(bare, lines, strict=True) if line.endswith(NEW)} == (
            set(fresh) if turn else set()
        )
        request = loaded["follow_ups"][turn - 1] if turn else prompt
        shown = request.partition("name: ")[2].partition("\n")[0].split(", ")
        assert sorted(shown) == sorted(fresh)
        assert ("Follow the same format as before." in request) == (turn > 1)
    assert TASK.score_turns(perfect(answer), answer) == 1.0
    assert TASK.correct_turns(perfect(answer), answer)


def test_the_words_of_the_environment() -> None:
    prompt, answer = make_problem(["AnnLee", "BobRay"], [1, 1], random.Random(0))
    assert prompt.startswith("Sort these names in alphabetical order by ")
    assert "\n\nUse exactly this format:\n<alphabetical_sorted>\nName1\n" in prompt
    assert prompt.endswith("</alphabetical_sorted>")
    (later,) = json.loads(answer)["follow_ups"]
    assert "Mark any NEW names (that weren't in the prior list) with `// new name!` at the end." in later
    assert "<combined_alphabetical_sorted>\nName1" in later


def test_replies_come_in_order_and_end() -> None:
    _, answer = make_problem(NAMES, [2, 2, 2], random.Random(1))
    later = json.loads(answer)["follow_ups"]
    assert [TASK.reply(["x"] * n, answer) for n in (1, 2, 3)] == [later[0], later[1], None]


def test_the_reward_is_the_mean_over_all_turns() -> None:
    _, answer = make_problem(NAMES, [2, 2], random.Random(1))
    first, second = perfect(answer)
    assert TASK.score_turns([first], answer) == TASK.score(first, answer) == 0.5
    assert TASK.score_turns([first, "no"], answer) == 0.5
    assert TASK.score_turns(["no", second], answer) == 0.5
    assert TASK.score_turns([second, first], answer) == 0.0
    assert not TASK.correct(first, answer)
    assert not TASK.correct_turns([first, second.replace(NEW, "")], answer)
    assert 0.5 < TASK.score_turns([first, second.replace(NEW, "")], answer) < 1.0


def test_of_several_attempts_each_must_be_better_than_the_one_before() -> None:
    right = ["AnnLee", "BobRay", "CyFox"]
    good, bad = block(right, FIRST), block(right[::-1], FIRST)
    assert best_attempt(bad + good, right, FIRST) == 1.0
    assert best_attempt(good + bad, right, FIRST) == 0.0
    assert best_attempt(good + good, right, FIRST) == 0.0
    assert best_attempt(block([], FIRST), right, FIRST) == 0.0
    assert best_attempt("".join(block(right[: n % 4], FIRST) for n in range(9)), right, FIRST) == 0.0
    assert blocks(good + good, FIRST) == [right, right]
    assert blocks(good, LATER) == []


@given(st.lists(st.text(), max_size=4))
def test_the_reward_is_total(completions: list[str]) -> None:
    _, answer = make_problem(NAMES, [2, 2], random.Random(1))
    assert TASK.score_turns(completions, answer) == 0.0


def test_hostile_completions_score_nothing_soon() -> None:
    _, answer = make_problem(NAMES, [2, 2], random.Random(1))
    for text in (
        f"<{FIRST}>" * 10**6,
        block(["A"], FIRST) * 10**5,
        block(["A" * 10**7], FIRST),
        "\x00\ud800" * 10**6,
    ):
        started = time.perf_counter()
        assert TASK.score_turns([text, text], answer) == 0.0
        assert time.perf_counter() - started < 2.0


def test_the_splits_share_no_names_and_never_change() -> None:
    task = AlphabetSortTurns(2)
    assert task.source == "shipped"
    train, validation, test = (task.problems(split) for split in tasks.SPLITS)
    assert (len(train), len(validation), len(test)) == (8192, 512, 1024)
    assert len({*train["prompt"], *validation["prompt"], *test["prompt"]}) == 8192 + 512 + 1024
    again = AlphabetSortTurns(2).problems("test")
    assert again[0] == test[0]
    assert again[1023] == test[1023]


def test_names_of_the_hub_are_used_where_it_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"names": [f"A{'b' * (n % 7)} C{m}" for m in range(10)] + [f"N{n} X"]} for n in range(6000)]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    task = AlphabetSortTurns(1)
    assert task.source == "hub"
    assert " " not in json.loads(task.problems("test")[0]["answer"])["expected"][0][0]


def test_a_hub_that_fails_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.warns(UserWarning, match="takes the shipped names"):
        assert AlphabetSortTurns(1).source == "shipped"


@pytest.mark.parametrize("turns", ["0", "6", "two", "", "-1"])
def test_impossible_turns(turns: str) -> None:
    with pytest.raises(ValueError, match="has 1 to 5 turns"):
        AlphabetSortTurns(turns)
