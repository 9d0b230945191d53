r"""Inequalities as the intervals that they say: `x < 2 \text{ or } x \ge 3` is `(-\infty,2)\cup[3,\infty)`."""

from __future__ import annotations

import re

from multiticket.tasks.answer_words import joined_by_commas

_SIGN = r"\\leq?(?![A-Za-z])|\\geq?(?![A-Za-z])|\\lt(?![A-Za-z])|\\gt(?![A-Za-z])|<=|>=|[<>≤≥]"
_ONE = re.compile(rf"\s*([a-z])\s*({_SIGN})\s*([^<>=,]+?)\s*")
_TWO = re.compile(rf"\s*([^<>=,]+?)\s*({_SIGN})\s*([a-z])\s*({_SIGN})\s*([^<>=,]+?)\s*")
_LETTERS = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")


def as_intervals(answer: str) -> str | None:
    """The union that inequalities of one variable say, joined by `or` or commas; None for anything else."""
    if re.search(_SIGN, answer) is None or re.search(r"\\text\s*\{\s*and|\band\b|\\wedge|\\land", answer):
        return None
    pieces, variables = [], set()
    for part in joined_by_commas(answer).split(","):
        if one := _ONE.fullmatch(part):
            variable, sign, bound = one.groups()
            below, closed = _is_below(sign), _is_closed(sign)
            piece = (
                rf"(-\infty,{bound}{']' if closed else ')'}"
                if below
                else rf"{'[' if closed else '('}{bound},\infty)"
            )
        elif two := _TWO.fullmatch(part):
            low, first, variable, second, high = two.groups()
            if _is_below(first) is not _is_below(second):
                return None
            if not _is_below(first):
                low, first, second, high = high, second, first, low
            piece = f"{'[' if _is_closed(first) else '('}{low},{high}{']' if _is_closed(second) else ')'}"
        else:
            return None
        variables.add(variable)
        pieces.append(piece)
    if len(variables) != 1 or any(_LETTERS.search(piece) for piece in pieces):
        return None
    return r"\cup".join(pieces)


def _is_below(sign: str) -> bool:
    return sign.startswith((r"\l", "<", "≤"))


def _is_closed(sign: str) -> bool:
    return sign in ("≤", "≥") or sign.endswith("=") or sign.startswith((r"\le", r"\ge"))
