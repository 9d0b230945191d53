r"""Whether a completion's final answer equals the reference, as mathematics: what GSM8K and MATH are scored by.

Plain numbers and equal texts are compared here, exactly; everything else by math-verify in a process of its own
(`math_checker`). Never raises, whatever a completion holds.
"""

from __future__ import annotations

import re
import threading

from multiticket.tasks import math_checker
from multiticket.tasks.final_answer import LONGEST_ANSWER, final_answer, leaves_a_choice
from multiticket.tasks.plain_number import compare, read_number

DEEPEST = 20
"""Braces and brackets within one another; what is deeper is no answer to a school problem."""

_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|textrm)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\\[!,;: ]|\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\quad|~|\s+")
_NO_WORDS = frozenset({"sqrt", "frac", "pi", "infty", "sin", "cos", "tan", "log", "ln"})


class AnswerChecks:
    """Compares answers and counts the comparisons that math-verify crashed on or had no time for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failures = 0
        """Comparisons so far that failed; each was taken as unequal."""

    def correct(self, completion: str, reference: str) -> bool:
        """Whether the last finished answer of `completion` equals `reference`, the bare answer of the problem."""
        answer = final_answer(completion)
        return answer is not None and self.equal(reference, answer)

    def equal(self, reference: str, answer: str) -> bool:
        """Whether two bare answers are equal; False where nothing could tell in time."""
        judgement = _judge_here(reference, answer)
        if judgement is not None:
            return judgement
        judgement = math_checker.remembered(reference, answer)
        if judgement is None:
            with self._lock:
                self.failures += 1
            return False
        return judgement


def _judge_here(reference: str, answer: str) -> bool | None:
    """True or False where that needs no computer algebra, else None."""
    if len(answer) > LONGEST_ANSWER or not _is_text(answer) or _depth(answer) > DEEPEST:
        return False
    if leaves_a_choice(answer) and not leaves_a_choice(reference):
        return False
    if _squeezed(reference) == _squeezed(answer):
        return True
    expected = read_number(reference)
    if expected is not None:
        given = read_number(answer)
        if given is not None:
            return compare(expected, given)
        return False if _words(answer) else None
    name = _name(reference)
    if name is not None:
        return name == _name(answer)
    return None


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


def _squeezed(answer: str) -> str:
    r"""Without what changes nothing: spaces, `\left`, dollar signs, a full stop at the end, the size of fractions."""
    answer = re.sub(r"\\?\$", "", _SPACE.sub("", answer))
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer)
    return answer.rstrip(".")


def _words(answer: str) -> list[str]:
    """English words in an answer, LaTeX commands and the contents of their text aside."""
    bare = re.sub(r"\\[A-Za-z]+", " ", answer)
    return [word for word in re.findall(r"[A-Za-z]{2,}", bare) if word.lower() not in _NO_WORDS]


def _name(answer: str) -> str | None:
    r"""What an answer in words says, folded: `\text{Evelyn}`, `(\text{C})`, `Monday`; None where it is a formula."""
    bare = _TEXT.sub(r"\1", answer)
    bare = re.sub(r"\\?\$", "", bare).strip().rstrip(".").strip()
    if bare.startswith("(") and bare.endswith(")") and len(bare) == 3:
        bare = bare[1:-1]
    only_letters = re.fullmatch(r"[A-Za-z][A-Za-z ,'-]*", bare) is not None
    is_name = only_letters and (_TEXT.search(answer) is not None or len(re.sub("[^A-Za-z]", "", bare)) > 3)
    is_choice = only_letters and len(bare) == 1 and bare.isupper()
    return " ".join(bare.casefold().split()) if is_name or is_choice else None
