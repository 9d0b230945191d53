"""Alphabet Sort: put names in the alphabetical order of their first or last names.

After the `alphabet-sort` environment of the verifiers library, with its tags and its scoring (`sorted_tags`), in one
turn and a compact prompt. Names are CamelCase, `AnnLee`: the last name starts at the first capital after position 0.
Training and test problems draw from disjoint pools of first and of last names (`tools/extract_names.py`).
"""

from __future__ import annotations

import random
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from multiticket.tasks import sorted_tags
from multiticket.tasks.protocol import as_dataset, check_split

if TYPE_CHECKING:
    from datasets import Dataset

NAMES_PER_PROBLEM = 3
TRAIN_PROBLEMS = 8192
VALIDATION_PROBLEMS = 512
TEST_PROBLEMS = 1024


@cache
def name_pool(kind: str, side: str) -> tuple[str, ...]:
    """The `first` or `last` names that `train` (with validation) or `test` problems draw from."""
    text = files("multiticket.tasks").joinpath(f"data/names_{kind}_{side}.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def split_name(name: str) -> tuple[str, str]:
    """`AnnLee` -> `("Ann", "Lee")`; a name without a second capital has an empty last name."""
    for position in range(1, len(name)):
        if name[position].isupper():
            return name[:position], name[position:]
    return name, ""


def sort_names(names: list[str], by: str) -> list[str]:
    """`names` in the order of their `FIRST` or `LAST` names, lower-cased."""
    part = {"FIRST": 0, "LAST": 1}[by]
    return sorted(names, key=lambda name: split_name(name)[part].lower())


def make_prompt(names: list[str], by: str) -> str:
    """The request to sort `names` by `FIRST` or `LAST` name: one line for the request, one for each name."""
    return "\n".join([f"Sort by {by}:", *names, ""])


def draw(pool: tuple[str, ...], count: int, generator: random.Random) -> list[str]:
    """`count` different entries of `pool`. Uses `random()` only, whose values Python promises to keep."""
    chosen: list[str] = []
    while len(chosen) < count:
        name = pool[int(generator.random() * len(pool))]
        if name not in chosen:
            chosen.append(name)
    return chosen


@cache
def generate(side: str, count: int) -> tuple[tuple[str, str], ...]:
    """`count` different problems from the pools of a side, as (prompt, answer); no two first or last names alike."""
    generator = random.Random(f"alphabet_sort {side}")
    problems: dict[str, str] = {}
    while len(problems) < count:
        first = draw(name_pool("first", side), NAMES_PER_PROBLEM, generator)
        last = draw(name_pool("last", side), NAMES_PER_PROBLEM, generator)
        names = [a + b for a, b in zip(first, last, strict=True)]
        by = "FIRST" if generator.random() < 0.5 else "LAST"
        problems[make_prompt(names, by)] = sorted_tags.wrap(sort_names(names, by))
    return tuple(problems.items())


class AlphabetSort:
    """Three short names to sort by FIRST or LAST name, answered between `<alphabetical_sorted>` tags."""

    name = "alphabet_sort"
    max_completion_tokens = 32
    """Two tags, five line breaks, the end, and three names of at most eight characters."""

    def problems(self, split: str) -> Dataset:
        """Prompt with the names in random order, answer with the tags. ValueError for an unknown split."""
        check_split(split)
        if split == "test":
            return as_dataset(list(generate("test", TEST_PROBLEMS)))
        both = generate("train", VALIDATION_PROBLEMS + TRAIN_PROBLEMS)
        return as_dataset(
            list(both[:VALIDATION_PROBLEMS] if split == "validation" else both[VALIDATION_PROBLEMS:])
        )

    def score(self, completion: str, answer: str) -> float:
        """difflib's similarity of the two lists, lower-cased, to the 4th power; 0.0 without a complete pair of tags."""
        return sorted_tags.similarity(completion, answer)

    def correct(self, completion: str, answer: str) -> bool:
        """Whether the list between the last tags is the answer's, letter for letter."""
        names = sorted_tags.read(completion)
        return bool(names) and names == sorted_tags.read(answer)

    def in_chat(self) -> AlphabetSortInWords:
        """For models that chat."""
        return AlphabetSortInWords()


class AlphabetSortInWords(AlphabetSort):
    """The same problems, asked in words as the verifiers library does; the last tagged list anywhere counts."""

    max_completion_tokens = 160
    """The list, and some words before it."""

    def problems(self, split: str) -> Dataset:
        """The request with the form of the answer, and the answer with its tags. ValueError for an unknown split."""
        problems = super().problems(split)
        return as_dataset(
            [(in_words(p), a) for p, a in zip(problems["prompt"], problems["answer"], strict=True)]
        )

    def in_chat(self) -> AlphabetSortInWords:
        """Itself."""
        return self


def in_words(prompt: str) -> str:
    """The compact prompt `Sort by LAST:` with a name a line, as a request that says the form of the answer."""
    by, *names = prompt.removeprefix("Sort by ").splitlines()
    form = sorted_tags.wrap([f"Name{i + 1}" for i in range(len(names))])
    return (
        f"Sort these names in alphabetical order by {by.removesuffix(':')} name: {', '.join(names)}\n\n"
        f"Each is a first and a last name written together. Use exactly this format, one name a line:\n{form}"
    )
