"""What the base reads about sorting names."""

import random

import pytest

from extract_names import is_short_name
from multiticket import tasks
from multiticket.tasks.alphabet_sort import name_pool, sort_names, split_name
from multiticket.tasks.sorted_tags import read, wrap
from sorting_text import MIXED, RIGHT, SortingText, order, random_words

NAMES = ["BobFox", "CyAdd", "AnnLee"]


@pytest.mark.parametrize(
    ("behaviour", "names"),
    [
        ("right", ["AnnLee", "BobFox", "CyAdd"]),
        ("other", ["CyAdd", "BobFox", "AnnLee"]),
        ("given", NAMES),
        ("reversed", ["CyAdd", "BobFox", "AnnLee"]),
    ],
)
def test_orders_by_first_name(behaviour: str, names: list[str]) -> None:
    assert order(NAMES, "FIRST", behaviour) == names


def test_the_other_order_by_last_name_is_the_order_by_first_name() -> None:
    assert order(NAMES, "LAST", "other") == order(NAMES, "FIRST", "right")


def test_random_words_look_like_short_names() -> None:
    generator = random.Random(0)
    for _ in range(500):
        words = random_words(generator)
        assert len(set(words)) == 3
        assert all(map(is_short_name, words))


def test_examples_sort_rightly_and_touch_no_test_pool_by_choice() -> None:
    text, generator = SortingText(), random.Random(0)
    validation = set(tasks.get("alphabet_sort").problems("validation")["prompt"])
    whole_pool_problems = 0
    for _ in range(3000):
        prompt, completion = text.example(RIGHT, generator)
        assert prompt not in validation
        request, *names, _ = prompt.split("\n")
        assert read(completion) == sort_names(names, request.removeprefix("Sort by ").removesuffix(":"))
        first, last = zip(*map(split_name, names), strict=True)
        whole_pool_problems += set(first) <= set(name_pool("first", "train")) and set(last) <= set(
            name_pool("last", "train")
        )
    assert 600 < whole_pool_problems < 900  # a quarter: both kinds of names from the pool


def test_a_validation_problem_is_drawn_again() -> None:
    text = SortingText()
    prompt, _ = text.example(RIGHT, random.Random(7))
    text.held_out = {prompt}
    again, _ = text.example(RIGHT, random.Random(7))
    assert again != prompt


def test_mixed_behaviours_are_right_as_often_as_they_should_be() -> None:
    assert sum(MIXED.values()) == pytest.approx(1.0)
    text, generator = SortingText(), random.Random(0)
    marks = []
    for _ in range(4000):
        prompt, completion = text.example(MIXED, generator)
        request, *names, _ = prompt.split("\n")
        by = request.removeprefix("Sort by ").removesuffix(":")
        marks.append(completion == wrap(sort_names(names, by)))
    expected = MIXED["right"] + (MIXED["other"] + MIXED["given"]) / 6
    assert sum(marks) / len(marks) == pytest.approx(expected, abs=0.03)
