r"""The final answer of a worked solution: what stands in the last `\boxed{}` or after the last `####`.

The last answer counts, and a Markdown heading (`#### Check`) is none. Of a completion, a box that is never closed, an
empty one, and a choice between two answers are no finished answers; of a reference solution, the last box is read
whatever stands around it. Only the end of a text is read, so that any length takes bounded time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from multiticket.tasks.plain_number import read_number

TAIL = 20_000
"""Characters at the end of a completion that are searched for its answer."""

LONGEST_ANSWER = 500
"""Characters. The longest reference answer of MATH has under 200; what is longer is not an answer."""

MOST_MARKS = 100
"""`####` marks that are looked at, from the end."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_MARK = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_EMPHASIS = re.compile(r"^(\*\*|__|\*|_|`)(.+)\1$")
_HEADING = re.compile(r"(?:\d+[.)]\s*)?[A-Za-z]{2,}")
_CHOICE = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])|\?", re.IGNORECASE)
_CHOICE_BEFORE = re.compile(
    r"[}\d$)\]][\s$,.()\[\]\\]*\bor[\s$(\[\\]*$|\\text\s*\{\s*or\s*\}\s*$", re.IGNORECASE
)
_CHOICE_AFTER = re.compile(r"^[\s$,)\]\\]*or\b[\s$(\[\\]*(?:boxed|fbox|d?frac|[-.\d])", re.IGNORECASE)
_BEFORE_OR = re.compile(r"[\s$,.()\[\]\\]*(?:\bor|\\text\s*\{\s*or\s*\})[\s$(\[\\]*$", re.IGNORECASE)


class Found(NamedTuple):
    """A final answer, and what stands beside it as another one: `\\frac{5}{2}$ or $\\boxed{2.5}`."""

    answer: str
    alternative: str | None = None


def final_answer(text: str) -> str | None:
    r"""The last answer of a completion, as written; None where there is no finished one, or a choice of two.

    `\boxed{...}` with braces nested to any depth, `\boxed x` up to the end of the formula, or the rest of the line
    after `####`: whichever comes last.
    """
    found = find_answer(text)
    return found.answer if found is not None and found.alternative is None else None


def find_answer(text: str) -> Found | None:
    """As `final_answer`, with the alternative where the answer is one of two that may be the same."""
    if not isinstance(text, str):
        return None
    text = text[-TAIL:]
    boxes = list(_BOX.finditer(text))
    after_mark = _marked(text, boxes[-1].start() if boxes else None)
    if after_mark is not None:
        return Found(after_mark) if 0 < len(after_mark) <= LONGEST_ANSWER else None
    if not boxes:
        return None
    found = _boxed(text, boxes[-1])
    if found is None:
        return None
    answer, end = found
    before, after = text[: boxes[-1].start()], text[end:]
    if not 0 < len(answer) <= LONGEST_ANSWER or _CHOICE_AFTER.search(after[:80]):
        return None
    if _CHOICE_BEFORE.search(before[-80:]):
        other = _formula_before_or(before)
        return Found(answer, other) if other else None
    return Found(answer)


def reference_answer(solution: str) -> str:
    r"""The bare answer of a reference solution: its last closed `\boxed{}`, or else what follows its last `####`.

    Raises ValueError where the solution has neither.
    """
    for box in reversed(list(_BOX.finditer(solution))):
        found = _boxed(solution, box)
        if found is not None and found[0]:
            return found[0]
    marks = [mark for mark in (m[1].strip() for m in _MARK.finditer(solution)) if mark]
    if not marks:
        raise ValueError(f"There is no final answer in the reference solution {solution[-80:]!r}.")
    return marks[-1]


def leaves_a_choice(answer: str) -> bool:
    """Whether an answer names alternatives instead of deciding: `18 or 19`, `18?`."""
    return _CHOICE.search(answer) is not None


def _boxed(text: str, box: re.Match[str]) -> tuple[str, int] | None:
    """The content of a box, and where it ends (exclusive); None where it is never closed."""
    start = box.end()
    end = _end_of_box(text, start)
    if end is None:
        return None
    answer = text[start:end].strip()
    return (answer[1:-1] if answer.startswith("{") else answer).strip(), end


def _marked(text: str, box: int | None) -> str | None:
    """What the last `####` says if it is the answer: it stands behind the last box (at `box`), and is no heading."""
    marks = [m for m in _MARK.finditer(text) if box is None or m.start() > box][-MOST_MARKS:]
    said = [_without_emphasis(mark[1].strip()) for mark in marks]
    for words in reversed(said):
        if read_number(words) is not None and not _HEADING.match(words):
            return words
    if box is not None:
        return None if not said or _HEADING.match(said[-1]) or not said[-1] else said[-1]
    for words in reversed(said):
        if words and not _HEADING.match(words):
            return words
    return said[-1] if said else None


def _without_emphasis(words: str) -> str:
    found = _EMPHASIS.match(words)
    return found[2].strip() if found else words


def _formula_before_or(before: str) -> str | None:
    """The formula that ends where `or` begins: between dollar signs, or in a box."""
    found = _BEFORE_OR.search(before[-80:])
    if found is None:
        return None
    before = before[: len(before) - (len(before[-80:]) - found.start())]
    dollar = before.rfind("$")
    formula = before[dollar + 1 :].strip() if dollar >= 0 else ""
    boxes = list(_BOX.finditer(before))
    if boxes and boxes[-1].start() > dollar:
        boxed = _boxed(before + "}", boxes[-1])
        formula = boxed[0] if boxed is not None else ""
    return formula if 0 < len(formula) <= LONGEST_ANSWER else None


def _end_of_box(text: str, start: int) -> int | None:
    """Where the argument that begins at `start` ends (exclusive); None for braces that are never closed."""
    opening = start
    while opening < len(text) and text[opening] in " \t":
        opening += 1
    if opening == len(text) or text[opening] != "{":
        end = re.compile(r"[$\n]|\\\)|\\\]").search(text, start)
        return end.start() if end else len(text)
    depth, place = 0, opening
    while place < len(text):
        character = text[place]
        if character == "\\":
            place += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    return None
