r"""Whether a completion's final answer equals the reference, as mathematics: what GSM8K and MATH are scored by.

Three things are decided here, exactly: equal texts, plain numbers, and answers in words. An answer that hedges where
the reference does not is refused. Everything else is for math-verify, in a process of its own (`math_checker`), whose
rounding is held to exact values there. Never raises, whatever a completion holds.
"""

from __future__ import annotations

import re
import threading
from fractions import Fraction

from multiticket.tasks import math_checker
from multiticket.tasks.answer_words import (
    at_top,
    chooses,
    folded,
    has_several_values,
    hedges,
    joined_by_commas,
    name_of,
    names_a_scale,
    scaled,
    squeezed,
    unwrapped,
    without_label,
)
from multiticket.tasks.final_answer import LONGEST_ANSWER, find_answer
from multiticket.tasks.inequalities import as_intervals
from multiticket.tasks.number_bases import read_in_base
from multiticket.tasks.plain_number import PlainNumber, compare, read_number, unit_of
from multiticket.tasks.units import differ as units_differ

DEEPEST = 20
"""Braces and brackets within one another; what is deeper is no answer to a school problem."""
LONGEST_CHAIN = 8
"""Sides of `a = b = c`; each may cost a question to math-verify."""

_APPROXIMATELY = re.compile(r"\\approx(?![A-Za-z])|≈|\\simeq(?![A-Za-z])")
_NO_WORDS = frozenset({"sqrt", "frac", "pi", "infty", "sin", "cos", "tan", "log", "ln", "mod"})


class AnswerChecks:
    """Compares answers and counts the comparisons that math-verify crashed on or had no time for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failures = 0
        """Comparisons so far that failed; each was taken as unequal."""

    def correct(self, completion: str, reference: str) -> bool:
        """Whether the last finished answer of `completion` equals `reference`, the bare answer of the problem."""
        found = find_answer(completion)
        if found is None or not self.equal(reference, found.answer):
            return False
        return found.alternative is None or self.equal(reference, found.alternative)

    def equal(self, reference: str, answer: str) -> bool:
        """Whether two bare answers are equal; False where nothing could tell in time."""
        if len(answer) > LONGEST_ANSWER or not _is_text(answer) or _depth(answer) > DEEPEST:
            return False
        name = name_of(reference)
        if name is not None:
            return name in (folded(answer), folded(answer.split("=")[-1]))
        if answer.lstrip().startswith("~") and not reference.startswith("~"):
            return False  # "about"; elsewhere in LaTeX a space
        return self._equal(unwrapped(reference), _with_signs(unwrapped(answer)))

    def _equal(self, reference: str, answer: str) -> bool:
        here = _judge_here(reference, answer)
        if here is not None:
            return here
        if has_several_values(reference):
            answer = joined_by_commas(answer)
        approximate = _APPROXIMATELY.split(answer)
        if len(approximate) > 1 and not _APPROXIMATELY.search(reference):
            return len(approximate) == 2 and self._either_side(reference, *approximate)
        chain = at_top(answer, "=")
        if len(chain) > 1 and "=" not in reference and len(at_top(answer, ",")) == 1:
            return self._every_value(reference, [part.strip() for part in chain])
        expected, given = _as_intervals(reference, answer)
        return self._ask(expected, given)

    def _either_side(self, reference: str, one: str, other: str) -> bool:
        r"""`\sqrt{2} \approx 1.41` for either of the two: one side is the other, rounded as it is written."""
        one, other = unwrapped(one.split("=")[-1]), unwrapped(other)
        rounded = read_number(other)
        if rounded is None or not one:
            return False
        value = math_checker.remembered_value(one)
        if value is None or abs(value - rounded.value) > _half_a_place(other):
            return False
        return self._equal(reference, one) or self._equal(reference, other)

    def _every_value(self, reference: str, chain: list[str]) -> bool:
        r"""`x = \frac{36}{2} = 18`: the last side and every side without variables is the reference."""
        if len(chain) > LONGEST_CHAIN:
            return False
        *before, last = chain
        closed = [
            part for part in before if part and not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", part))
        ]
        return bool(last) and all(self._equal(reference, part) for part in [last, *closed])

    def _ask(self, reference: str, answer: str) -> bool:
        judgement = math_checker.remembered(*(re.sub(r"\\?\$", " ", text) for text in (reference, answer)))
        if judgement is None:
            with self._lock:
                self.failures += 1
        return bool(judgement)


def _judge_here(reference: str, answer: str) -> bool | None:
    """True or False where that needs no computer algebra, else None."""
    if not answer:
        return False
    if squeezed(reference) == squeezed(answer):
        return True
    if hedges(answer) and not hedges(reference):
        return False
    several = has_several_values(reference) or _as_intervals(reference, answer)[1] != answer
    if chooses(answer) and not chooses(reference) and not several:
        return False
    based, given = read_in_base(reference), read_in_base(answer)
    if based is not None:
        return given == based if given is not None else squeezed(answer).casefold() == based.digits
    if given is not None:
        return given.value is not None and _number(reference) == PlainNumber(Fraction(given.value))
    expected, given_number = _number(reference), _number(without_label(answer))
    if expected is not None and given_number is not None:
        if units_differ(unit_of(reference), unit_of(answer)):
            return False
        return compare(expected, given_number)
    if names_a_scale(answer) and not names_a_scale(reference):
        return False
    if expected is not None and "=" not in answer and not _APPROXIMATELY.search(answer) and _words(answer):
        return False
    return False if _brackets(reference, answer) else None


def _with_signs(answer: str) -> str:
    """`<=` and the like as LaTeX, so that an equals sign is one."""
    for typed, latex in (("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne "), ("==", "=")):
        answer = answer.replace(typed, latex)
    return answer


def _number(text: str) -> PlainNumber | None:
    """A plain number, also one with `million` or the like behind it."""
    plain = read_number(text)
    if plain is not None:
        return plain
    factored = scaled(text)
    plain = read_number(factored[0]) if factored is not None else None
    return PlainNumber(plain.value * factored[1]) if plain is not None and factored is not None else None


def _as_intervals(reference: str, answer: str) -> tuple[str, str]:
    """Both as intervals where one of them is and the other can be."""
    said, asked = as_intervals(answer), as_intervals(reference)
    if said is not None and (asked is not None or re.match(r"(?:\\left)?[(\[]", reference)):
        return asked or reference, said
    if asked is not None and re.match(r"(?:\\left)?[(\[]", answer):
        return asked, answer
    return reference, answer


def _brackets(reference: str, answer: str) -> bool:
    r"""Whether one is a set in braces and the other a pair or an interval: `\{2,5\}` is not `(2,5)`."""
    opened = [squeezed(text)[:2] for text in (reference, answer)]
    return any(a == r"\{" and b[:1] in ("(", "[") for a, b in (opened, opened[::-1]))


def _half_a_place(number: str) -> Fraction:
    """Half of the last decimal place that is written."""
    decimals = re.search(r"\.([0-9]+)", number)
    return Fraction(1, 2 * 10 ** (len(decimals[1]) if decimals else 0))


def _is_text(answer: str) -> bool:
    """Whether it has only characters that an answer may have: no control characters, no halves of surrogates."""
    return all(character.isprintable() or character in "\t\n\r" for character in answer)


def _depth(answer: str) -> int:
    depth = deepest = 0
    for character in answer:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest


def _words(answer: str) -> list[str]:
    r"""English words in an answer, LaTeX commands and the contents of `\text{}` aside."""
    bare = re.sub(r"\\(?:text|mathrm|mbox|textrm|textbf|textit|operatorname)\s*\{[^{}]*\}", " ", answer)
    bare = re.sub(r"\\[A-Za-z]+", " ", bare)
    return [word for word in re.findall(r"[A-Za-z]{2,}", bare) if word.lower() not in _NO_WORDS]
