"""The number that a model's words end with: `So 48 / 2 = 24.` says 24.

The last finished number counts. The operand of a calculation whose result is not said is none, so that repeating the
question (`48 / 2`) is no answer; nor is a number within a word (`x2`) or an ordinal (`2nd`).
"""

from __future__ import annotations

import re
from fractions import Fraction

TAIL = 2000
"""Characters at the end that are searched."""
MOST_DIGITS = 50

_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-−])?(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?P<decimals>\.[0-9]+)?"
    r"(?![\w]|[.,][0-9])"
)
_BOLD = re.compile(r"(?<![0-9)])\*\*|\*\*(?!\s*[0-9(])")
_OPERATOR_BEFORE = re.compile(r"(?:[+*/×÷^·]|\\times|\\cdot|\\div|[0-9)]\s*[-−])\s*$")
_OPERATOR_AFTER = re.compile(r"^\s*(?:[+*/×÷^·]|\\times|\\cdot|\\div|[-−]\s*[0-9(])")


def said_number(text: str) -> Fraction | None:
    """The last number of a text; None where it ends in a calculation, or has none."""
    if not isinstance(text, str):
        return None
    text = re.sub(r"\\[,!]", "", text[-TAIL:]).replace("{,}", ",")
    text = _BOLD.sub(" ", text)
    found = next(reversed(list(_NUMBER.finditer(text))), None)
    if found is None or len(found["digits"]) > MOST_DIGITS or len(found["decimals"] or "") > MOST_DIGITS:
        return None
    before, after, sign = text[: found.start()], text[found.end() :], found["sign"]
    if sign and re.search(r"[0-9)]\s*$", before):
        return None  # a difference whose result is not said
    if _OPERATOR_BEFORE.search(before[-20:]) or _OPERATOR_AFTER.match(after[:20]):
        return None
    value = Fraction(found["digits"].replace(",", "") + (found["decimals"] or ""))
    return -value if sign else value
