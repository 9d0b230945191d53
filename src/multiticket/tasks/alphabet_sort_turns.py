"""Alphabet Sort as a conversation, after the `alphabet-sort` environment of the verifiers library.

The first turn asks to sort one to five names by FIRST or LAST name. Each later turn brings one to five more, to be
sorted together with all before, with `// new name!` behind the new ones. A turn scores (difflib ratio of the lists,
lower-cased) ** 4; of several blocks in one answer each must be better than the one before, and the last counts; the
reward is the mean over the turns. Prompts show the format with as many lines as chance has it.

Names are those of arXiv authors (`kalomaze/alphabetic-arxiv-authors-it1`, as there) where the hub can be reached, and
otherwise the shipped ones, which Faker made (`tools/extract_names.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from multiticket.tasks import sorted_tags
from multiticket.tasks.alphabet_sort import draw, name_pool, split_name
from multiticket.tasks.protocol import as_dataset, check_split
from multiticket.tasks.sources import Problems, load_hub

if TYPE_CHECKING:
    from datasets import Dataset

DATA = "kalomaze/alphabetic-arxiv-authors-it1"
MOST_NAMES = 5
MOST_TURNS = 5
TRAIN_PROBLEMS = 8192
VALIDATION_PROBLEMS = 512
TEST_PROBLEMS = 1024
FIRST, LATER = "alphabetical_sorted", "combined_alphabetical_sorted"
NEW = " // new name!"


class AlphabetSortTurns:
    """Names to sort by FIRST or LAST name, more of them in each of 1 to 5 turns."""

    name = "alphabet_sort_turns"
    max_completion_tokens = 128
    """The paper's, for one turn."""

    def __init__(self, turns: int | str = 2) -> None:
        if str(turns) not in {str(n) for n in range(1, MOST_TURNS + 1)}:
            raise ValueError(f"alphabet_sort_turns has 1 to {MOST_TURNS} turns, as @2, not {turns!r}.")
        self.turns = int(turns)

    @cached_property
    def source(self) -> str:
        """`hub` or `shipped`: where the names come from."""
        return "hub" if self._hub_names else "shipped"

    @cached_property
    def _hub_names(self) -> list[list[str]]:
        """The hub's lists of names in an order that a hash fixes; [] where it cannot be reached."""
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") or os.environ.get("HF_DATASETS_OFFLINE"):
            return []
        try:
            rows = load_hub(DATA, "train")
        except ValueError as error:
            warnings.warn(f"alphabet_sort_turns takes the shipped names: {error}", stacklevel=2)
            return []
        lists = [list(dict.fromkeys(name.replace(" ", "") for name in row["names"])) for row in rows]
        lists.sort(key=lambda names: hashlib.sha256("\n".join(names).encode("utf-8", "replace")).digest())
        return lists

    def problems(self, split: str) -> Dataset:
        """The first request, and as answer the JSON of all expected lists and later requests."""
        check_split(split)
        if split == "test":
            return as_dataset(self._make("test", TEST_PROBLEMS))
        both = self._make("train", VALIDATION_PROBLEMS + TRAIN_PROBLEMS)
        return as_dataset(both[:VALIDATION_PROBLEMS] if split == "validation" else both[VALIDATION_PROBLEMS:])

    def _make(self, side: str, count: int) -> Problems:
        generator = random.Random(f"alphabet_sort_turns {self.turns} {side}")
        problems: dict[str, str] = {}
        for names in self._name_lists(side, generator):
            counts = [_between(1, MOST_NAMES, generator) for _ in range(self.turns)]
            if len(names) < sum(counts):
                continue
            prompt, answer = make_problem(names, counts, generator)
            problems.setdefault(prompt, answer)
            if len(problems) == count:
                break
        return list(problems.items())

    def _name_lists(self, side: str, generator: random.Random) -> Iterator[list[str]]:
        """Lists of names for a side: the hub's first ones are for tests. The shipped pools never end."""
        if self._hub_names:
            tests = 4 * TEST_PROBLEMS
            yield from self._hub_names[:tests] if side == "test" else self._hub_names[tests:]
            return
        while True:
            count = self.turns * MOST_NAMES
            first = draw(name_pool("first", side), count, generator)
            last = draw(name_pool("last", side), count, generator)
            yield [a + b for a, b in zip(first, last, strict=True)]

    def reply(self, completions: list[str], answer: str) -> str | None:
        """The next request; None after the last turn."""
        later = _load(answer)["follow_ups"]
        return later[len(completions) - 1] if 0 < len(completions) <= len(later) else None

    def score(self, completion: str, answer: str) -> float:
        """The reward of a conversation that ended after one answer."""
        return self.score_turns([completion], answer)

    def correct(self, completion: str, answer: str) -> bool:
        """Whether one answer is all that is asked for, and is right."""
        return self.correct_turns([completion], answer)

    def score_turns(self, completions: list[str], answer: str) -> float:
        """The mean over all expected turns; a turn without an answer scores 0."""
        expected = _load(answer)["expected"]
        scores = [
            sorted_tags.best_attempt(completion, lines, FIRST if turn == 0 else LATER)
            for turn, (completion, lines) in enumerate(zip(completions, expected, strict=False))
        ]
        return sum(scores) / len(expected)

    def correct_turns(self, completions: list[str], answer: str) -> bool:
        """Whether each turn's last block is the expected list, letter for letter."""
        expected = _load(answer)["expected"]
        return len(completions) == len(expected) and all(
            (sorted_tags.blocks(completion, FIRST if turn == 0 else LATER) or [[]])[-1] == lines
            for turn, (completion, lines) in enumerate(zip(completions, expected, strict=True))
        )


def make_problem(names: list[str], counts: list[int], generator: random.Random) -> tuple[str, str]:
    """A first request and its answer: `counts[t]` of `names` come in turn t."""
    by = "FIRST" if generator.random() < 0.5 else "LAST"
    requests, expected, before = [], [], 0
    for turn, count in enumerate(counts):
        fresh = names[before : before + count]
        known = names[: before + count]
        ordered = sorted(known, key=lambda name: split_name(name)[0 if by == "FIRST" else 1])
        expected.append([name + NEW if turn and name in fresh else name for name in ordered])
        shown = ", ".join(draw(tuple(fresh), count, generator))
        requests.append(_request(turn, by, shown, len(known), generator))
        before += count
    return requests[0], json.dumps({"expected": expected, "follow_ups": requests[1:]}, ensure_ascii=False)


def _request(turn: int, by: str, names: str, known: int, generator: random.Random) -> str:
    """The environment's words; the number of lines in the example says nothing of the answer's."""
    if turn == 0:
        lines = [f"Name{i + 1}" for i in range(_between(1, MOST_NAMES, generator))]
        return f"Sort these names in alphabetical order by {by} name: {names}\n\n" + _format(FIRST, lines)
    request = (
        f"Now sort ALL of these names alphabetically by {by} name: {names}\n\nThese are in addition to the prior list. "
        "Mark any NEW names (that weren't in the prior list) with `// new name!` at the end."
    )
    if turn > 1:
        return request + " Follow the same format as before."
    count = _between(1, known, generator)
    old = _between(0, count - 1, generator)
    lines = [f"Name{i + 1}" + (NEW if i >= old else "") for i in range(count)]
    return f"{request}\n\n" + _format(LATER, lines)


def _format(tag: str, lines: list[str]) -> str:
    return "\n".join(["Use exactly this format:", f"<{tag}>", *lines, f"</{tag}>"])


def _between(low: int, high: int, generator: random.Random) -> int:
    """Uniform in [low, high]. Uses `random()` only, whose values Python promises to keep."""
    return low + int(generator.random() * (high - low + 1))


def _load(answer: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(answer)
    return loaded
