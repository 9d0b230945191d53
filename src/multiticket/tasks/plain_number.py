r"""Numbers as people write them in answers: `$1,234.50`, `\frac{3}{4}`, `50\%`, `18 \text{ cm}`, `-7/2 hours`.

Most answers are of this kind, and comparing them needs no computer algebra. What is not plainly a number reads as
None, and is left to math-verify.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 200
"""Characters; a longer number is left to the checker, which has a time limit."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:\\[dt]?frac\{{(?P<top>[+-]?{_DECIMAL})\}}\{{(?P<below>{_DECIMAL})\}}"
    rf"|\\[dt]?frac(?P<digit>[0-9])(?P<digit_below>[0-9])"
    rf"|(?P<whole>{_DECIMAL})(?:/(?P<slash>{_DECIMAL}))?)"
)
_BRACED_UNIT = re.compile(
    r"(?:\\(?:text|mathrm|mbox|textrm|operatorname)\{(?P<unit>[^{}0-9]*)\}|\^\{?\\circ\}?|\\degree|°)(?:\^\{?[23]\}?)?$"
)
_UNIT = re.compile(r"(?P<words>(?:\s+(?:[A-Za-z]{2,}|a|an|m|g|h|L|s)){1,4})(?:\^\{?[23]\}?)?\.?$")
_NO_UNIT = frozenset(
    (
        *(
            "and",
            "or",
            "not",
            "no",
            "to",
            "plus",
            "minus",
            "times",
            "over",
            "by",
            "mod",
            "percent",
            "squared",
            "cubed",
        ),
        *(
            "dozen",
            "hundred",
            "thousand",
            "million",
            "billion",
            "trillion",
            "half",
            "halves",
            "third",
            "thirds",
        ),
        *("quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "tenth", "tenths", "hundredth"),
        *("hundredths", "thousandth", "thousandths", "pi", "sqrt", "ln", "log", "sin", "cos", "tan"),
        *("is", "are", "was", "wrong", "if", "unless", "maybe", "perhaps", "approximately", "about", "than"),
        *("more", "less", "but"),
    )
)
"""Words that change a number or qualify it, and so are no unit."""
_LATEX_SPACE = re.compile(r"\\[,;: ]|~|\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\quad")


@dataclass(frozen=True)
class PlainNumber:
    """An exact value, and whether a percent sign followed it."""

    value: Fraction
    percent: bool = False


def read_number(text: str) -> PlainNumber | None:
    """The number that `text` is, its currency and unit aside; None for anything else."""
    if len(text) > LONGEST:
        return None
    text = _LATEX_SPACE.sub(" ", text.replace("{,}", ",").replace("\\!", "").replace("−", "-")).strip()
    text = re.sub(r"\\?\$|[€£]", "", text).strip()
    text, unit_is_fine = _without_unit(text.strip())
    if not unit_is_fine:
        return None
    percent = text.endswith("%")
    if percent:
        text = text.removesuffix("%").removesuffix("\\").rstrip()
    found = _NUMBER.fullmatch(re.sub(r"^([+-])\s+", r"\1", text))
    if found is None:
        return None
    top = found["top"] or found["digit"] or found["whole"]
    below = found["below"] or found["digit_below"] or found["slash"] or "1"
    denominator = _fraction(below)
    if denominator == 0:
        return None
    value = _fraction(top) / denominator
    return PlainNumber(-value if found["sign"] == "-" else value, percent)


def compare(expected: PlainNumber, given: PlainNumber) -> bool | None:
    """Whether two numbers are equal; None where they differ so little that rounding rules decide (math-verify's).

    A percent sign is read both ways, as math-verify does: `50%` equals 50 and 0.5.
    """
    if expected.percent == given.percent:
        pairs = [(expected.value, given.value)]
    else:
        pairs = [(expected.value, given.value)]
        pairs += [(expected.value / 100, given.value)] if expected.percent else []
        pairs += [(expected.value, given.value / 100)] if given.percent else []
    if any(a == b for a, b in pairs):
        return True
    return None if any(abs(a - b) < Fraction(1, 10_000) for a, b in pairs) else False


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _without_unit(text: str) -> tuple[str, bool]:
    """The text without a unit at its end, and whether what was taken off can be one."""
    words = ""
    if found := _BRACED_UNIT.search(text):
        text, words = text[: found.start()].rstrip(), found["unit"] or ""
    elif found := _UNIT.search(text):
        text, words = text[: found.start()].rstrip(), found["words"]
    return text, not _NO_UNIT & set(re.findall(r"[a-z]+", words.lower()))
