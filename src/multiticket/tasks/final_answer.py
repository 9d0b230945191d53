r"""The final answer of a worked solution: what stands in the last `\boxed{}` or after the last `####`.

The last answer counts. A box that is never closed, an empty one, and an answer that leaves a choice (`18 or 19`,
within a box or between two) are no finished answers. Only the end of a text is read, so that any length takes
bounded time.
"""

from __future__ import annotations

import re

TAIL = 20_000
"""Characters at the end of a completion that are searched for its answer."""

LONGEST_ANSWER = 500
"""Characters. The longest reference answer of MATH has under 200; what is longer is not an answer."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_MARK = "####"
_CHOICE = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])|\?", re.IGNORECASE)
_CHOICE_BEFORE = re.compile(r"[}\d$)\]][\s$,.()\[\]\\]*\bor[\s$(\[\\]*$", re.IGNORECASE)
_CHOICE_AFTER = re.compile(r"^[\s$,)\]\\]*or\b[\s$(\[\\]*(?:boxed|fbox|d?frac|[-.\d])", re.IGNORECASE)


def final_answer(text: str) -> str | None:
    r"""The last answer of a completion or of a reference solution, as written; None where there is no finished one.

    `\boxed{...}` with braces nested to any depth, `\boxed x` up to the end of the formula, or the rest of the line
    after `####`: whichever comes last.
    """
    if not isinstance(text, str):
        return None
    text = text[-TAIL:]
    boxes = list(_BOX.finditer(text))
    mark = text.rfind(_MARK)
    if mark >= 0 and (not boxes or boxes[-1].start() < mark):
        answer, before, after = text[mark + len(_MARK) :].partition("\n")[0], "", ""
    elif boxes:
        start = boxes[-1].end()
        end = _end_of_box(text, start)
        if end is None:
            return None
        answer, before, after = text[start:end].strip(), text[: boxes[-1].start()], text[end:]
        answer = answer[1:-1] if answer.startswith("{") else answer
    else:
        return None
    if _CHOICE_BEFORE.search(before[-80:]) or _CHOICE_AFTER.search(after[:80]):
        return None
    answer = answer.strip()
    return answer if 0 < len(answer) <= LONGEST_ANSWER else None


def leaves_a_choice(answer: str) -> bool:
    """Whether an answer names alternatives instead of deciding: `18 or 19`, `18?`."""
    return _CHOICE.search(answer) is not None


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
