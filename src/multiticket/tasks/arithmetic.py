"""Arithmetic as it occurs in GSM8K's solutions: `48/2=` asks for `24`.

The facts come from `extract_arithmetic` (source and licence there). Every expression that occurs in GSM8K's test split
is a test problem, or none at all; the commuted form of one (`2*48` for `48*2`) may be a training problem.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from multiticket.tasks.protocol import as_dataset, check_split
from multiticket.tasks.said_number import said_number

if TYPE_CHECKING:
    from datasets import Dataset

LARGEST_PRODUCT = 999
"""Products above it are left out: a 1 M-parameter model that writes no intermediate steps does not learn them."""

VALIDATION_PROBLEMS = 512


@cache
def facts(split: str) -> dict[str, str]:
    """`{expression: result}` of a split, in an order that a hash of the expression fixes.

    `validation` is the beginning of that order within GSM8K's training split, and `train` the rest.
    """
    check_split(split)
    source = "test" if split == "test" else "train"
    text = files("multiticket.tasks").joinpath(f"data/arithmetic_{source}.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pairs = [(expression, result) for expression, _, result in (line.partition("=") for line in lines)]
    pairs = [(e, r) for e, r in pairs if "*" not in e or int(r) <= LARGEST_PRODUCT]
    pairs.sort(key=lambda pair: hashlib.sha256(f"arithmetic:{pair[0]}".encode()).digest())
    if split == "validation":
        pairs = pairs[:VALIDATION_PROBLEMS]
    elif split == "train":
        pairs = pairs[VALIDATION_PROBLEMS:]
    return dict(pairs)


class Arithmetic:
    """`a OP b` with up to three digits an operand and an integer result; products up to 999."""

    name = "arithmetic"
    max_completion_tokens = 6
    """A result has at most four characters; then comes the end, and one token to spare."""

    def problems(self, split: str) -> Dataset:
        """Prompt `48/2=`, answer `24`. ValueError for an unknown split."""
        return as_dataset([(f"{expression}=", result) for expression, result in facts(split).items()])

    def score(self, completion: str, answer: str) -> float:
        """1.0 where `correct`, else 0.0."""
        return float(self.correct(completion, answer))

    def correct(self, completion: str, answer: str) -> bool:
        """Whether the completion is the answer and nothing else, white space at its ends aside.

        A finished answer is one that nothing follows: `24` is right, while `24.`, `024`, `24 48` and `240` are wrong.
        """
        return isinstance(completion, str) and completion.strip() == answer.strip()

    def in_chat(self) -> ArithmeticInWords:
        """For models that chat."""
        return ArithmeticInWords()


class ArithmeticInWords(Arithmetic):
    """The same problems, asked in words; the last number that is said counts."""

    max_completion_tokens = 48
    """An instruction model says the result in 3, or a sentence around it."""

    def problems(self, split: str) -> Dataset:
        """Prompt `What is 48 / 2? End with the number alone.`, answer `24`. ValueError for an unknown split."""
        return as_dataset([(in_words(expression), result) for expression, result in facts(split).items()])

    def correct(self, completion: str, answer: str) -> bool:
        """Whether the last finished number is the answer (`said_number`)."""
        return said_number(completion) == int(answer)

    def in_chat(self) -> ArithmeticInWords:
        """Itself."""
        return self


def in_words(expression: str) -> str:
    """`48/2` as a question."""
    spaced = re.sub(r"(?<=[0-9])([-+*/])(?=[0-9])", r" \1 ", expression)
    return f"What is {spaced}? End with the number alone."
