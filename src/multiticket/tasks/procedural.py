"""The procedural tasks of reasoning_gym: `reasoning_gym:chain_sum@min_terms=2,max_terms=3`.

All that the library registers, with each one's own options and its own score. Problems are made from fixed seeds, one
a split; what is in the test or validation split is not in train. A model that chats is asked for its answer between
`<answer>` tags, as the library asks; without tags, and without a chat template, all that it says is its answer.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from multiticket.errors import StopNow
from multiticket.tasks.guarded import Guard
from multiticket.tasks.judging import Judgement, Problem
from multiticket.tasks.options import split_options, value_of, whole_number
from multiticket.tasks.protocol import check_split, with_metadata
from multiticket.tasks.sources import without_repeats

if TYPE_CHECKING:
    from datasets import Dataset

SEEDS = {"test": 1_000_000, "validation": 2_000_000, "train": 3_000_000}
"""Far apart: the library makes a problem from its data set's seed plus its number."""
SIZES = {"test": 512, "validation": 128, "train": 2048}
OWN_OPTIONS = ("problems", "max_completion_tokens")
"""Beside the options of the library's configuration: how many training problems are made, and how long answers get."""
SCORE_S = 10.0
"""Seconds that the library may take for one score."""


class ReasoningGym:
    """One of reasoning_gym's generators: its score of an answer is the reward, and right is what scores 1."""

    max_completion_tokens = 64
    chat = False

    def __init__(self, kind: str, options: str = "") -> None:
        try:
            from reasoning_gym.factory import DATASETS
        except ImportError:
            raise ValueError(
                'reasoning_gym:NAME needs the library: pip install "multiticket[reasoning-gym]".'
            ) from None
        if kind not in DATASETS:
            raise ValueError(f"reasoning_gym has no task {kind!r}; it has {', '.join(sorted(DATASETS))}.")
        self.kind = kind
        self.name = f"reasoning_gym:{kind}" + (f"@{options}" if options else "")
        self.failures = 0
        self._guard = Guard(SCORE_S)
        first, given = split_options(options) if options else (None, {})
        if first is not None:
            raise ValueError(f"Options of {self.name} are written name=value, not {first!r}.")
        self._size = (
            whole_number("problems", given.pop("problems")) if "problems" in given else SIZES["train"]
        )
        self._tokens: int | None = None
        if "max_completion_tokens" in given:
            self._tokens = whole_number("max_completion_tokens", given.pop("max_completion_tokens"))
            self.max_completion_tokens = self._tokens
        known = [n for n in inspect.signature(DATASETS[kind][1]).parameters if n not in ("seed", "size")]
        for name in given:
            if name not in known:
                raise ValueError(
                    f"reasoning_gym's {kind} has no option {name!r}; it has {', '.join([*known, *OWN_OPTIONS])}."
                )
        self.options = {name: value_of(name, text) for name, text in given.items()}
        self._make("test", 1)[0]  # what cannot be is said now

    @cached_property
    def _data(self) -> dict[str, Any]:
        """The library's data sets, which make a problem when it is looked at."""
        return {split: self._make(split, self._size if split == "train" else SIZES[split]) for split in SEEDS}

    def _make(self, split: str, size: int) -> Any:
        import reasoning_gym
        from reasoning_gym.composite import DatasetSpec

        options = dict(self.options)
        if self.kind == "composite" and isinstance(options.get("datasets"), list):
            options["datasets"] = [
                DatasetSpec(**{"weight": 1, "config": {}, **(s if isinstance(s, dict) else {"name": s})})
                for s in options["datasets"]
            ]
        try:
            return reasoning_gym.create_dataset(self.kind, seed=SEEDS[split], size=size, **options)
        except Exception as error:  # each configuration has its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"reasoning_gym's {self.kind} cannot be made with {self.options}: {reason}."
            ) from None

    @cached_property
    def _splits(self) -> dict[str, list[Problem]]:
        found: dict[str, list[Problem]] = {}
        for split in SEEDS:
            entries = enumerate(self._data[split])
            made = [
                Problem(entry["question"], _text(entry["answer"]), {"split": split, "index": index})
                for index, entry in entries
            ]
            found[split] = without_repeats(made, [problem for held in found.values() for problem in held])
        if not found["train"]:
            raise ValueError(
                f"{self.name} has too few problems to train on besides the test split: choose larger options."
            )
        return found

    def problems(self, split: str) -> Dataset:
        """Questions and answers as the library writes them, and as metadata where an entry is found again."""
        check_split(split)
        return with_metadata(self._splits[split])

    def judge(self, conversations: Sequence[list[str]], problems: Sequence[Problem]) -> list[Judgement]:
        """The library's score of each answer; what it fails on scores 0 and is counted."""
        scores = [self._score(turns[0], p) for turns, p in zip(conversations, problems, strict=True)]
        return [Judgement(score, score == 1.0) for score in scores]

    def _score(self, completion: str, problem: Problem) -> float:
        entry = self._data[problem.metadata["split"]][problem.metadata["index"]]
        try:
            found = self._guard(
                self._data[problem.metadata["split"]].score_answer, self._answer(completion), entry
            )
            return min(1.0, max(0.0, float(found)))
        except (KeyboardInterrupt, StopNow):
            raise
        except BaseException as error:
            if not self.failures:
                warnings.warn(f"A score of {self.name} failed and counts as 0: {error!r}.", stacklevel=2)
            self.failures += 1
            return 0.0

    def _answer(self, completion: str) -> str:
        from reasoning_gym.utils import extract_answer

        tagged = extract_answer(completion) if self.chat else None
        return completion.strip() if tagged is None else tagged

    def score(self, completion: str, answer: str) -> float:
        """1.0 where the answer is the library's own, letter for letter: without its entry no more can be said."""
        return float(self._answer(completion) == answer)

    def correct(self, completion: str, answer: str) -> bool:
        """Whether `score` is 1."""
        return self.score(completion, answer) == 1.0

    def in_chat(self) -> ReasoningGym:
        """The same problems for a model that chats."""
        import copy

        from reasoning_gym.utils import SYSTEM_PROMPTS

        told = copy.copy(self)
        told.chat = True
        told.max_completion_tokens = self._tokens or 512
        told.system_prompt = SYSTEM_PROMPTS["default"].strip()
        return told

    system_prompt: str | None = None

    def example(self, answer: str) -> str:
        """An answer as an example shows it."""
        return f"<answer>{answer}</answer>" if self.chat else answer


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else "" if answer is None else str(answer)
