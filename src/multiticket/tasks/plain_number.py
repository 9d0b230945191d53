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
_COMMAND = r"\\(?:text|mathrm|mbox|textrm|textit|textbf|mathit|mathbf|operatorname)"
_UNIT = re.compile(
    rf"(?:\s*(?:{_COMMAND}\s*\{{[^{{}}0-9]*\}}|\^\{{?\\circ\}}?|\\degree|°|/(?=\s*[A-Za-z\\])|\\cdot(?![A-Za-z])|-?[A-Za-z]+(?![A-Za-z])\.?)"
    r"(?:\s*\^\s*(?:[23]|\{[23]\}))?)+\s*\.?$"
)
_BRACED = re.compile(rf"{_COMMAND}\s*\{{([^{{}}]*)\}}")
MOST_UNIT_WORDS = 5
_SHORT_UNITS_WORDS = """
a an am pm of in ft yd mi nm mm cm dm km m g kg mg lb lbs oz L l mL ml dL kL h hr hrs min mins s sec secs ms
mph kph kmh rpm Hz kHz W kW J kJ N V C F K sq cu pt qt gal pts deg rad yr yrs mo wk hp USD cents AM PM
"""
_SHORT_UNITS = frozenset(_SHORT_UNITS_WORDS.split())
"""What can stand right behind a number and is no product of variables: `18cm`. Other words need a space."""
_NO_UNIT_WORDS = """
and or not no to plus minus over by mod percent squared cubed dozen hundred thousand million billion trillion
half halves third thirds fourth fourths fifth fifths tenth tenths hundredth hundredths thousandth thousandths
pi sqrt ln log sin cos tan is are was wrong if unless maybe perhaps approximately approx about roughly than
less but cannot might could probably possibly ish between vs versus until plusminus e i x y z
"""
_NO_UNIT = frozenset(_NO_UNIT_WORDS.split())
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
    """Whether two numbers are equal; None where one may be the other, rounded: `0.333333` and `1/3` (math-verify's).

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
    rounded = any(abs(a - b) < Fraction(1, 10_000) and _terminates(a) != _terminates(b) for a, b in pairs)
    return None if rounded else False


def _terminates(value: Fraction) -> bool:
    """Whether a value can be written as a decimal."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def unit_of(text: str) -> str | None:
    """The unit behind a number as plain words, lower-cased: `square cm`; None where nothing stands there."""
    found = _UNIT.search(text.strip())
    return " ".join(_words(found[0])).casefold() or None if found else None


def _words(unit: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", _BRACED.sub(r" \1 ", re.sub(r"\\(?:circ|degree|cdot)", " ", unit)))


def _without_unit(text: str) -> tuple[str, bool]:
    """The text without a unit at its end, and whether what was taken off can be one."""
    found = _UNIT.search(text)
    if found is None:
        return text, True
    unit = found[0]
    words = _words(unit)
    if len(words) > MOST_UNIT_WORDS or any(
        word.lower() in _NO_UNIT and word not in _SHORT_UNITS for word in words
    ):
        return text, False
    for bare in re.finditer(
        r"(?P<space>^|[\s/.-]*)(?P<word>[A-Za-z]+)", _BRACED.sub(" ", re.sub(r"\\[a-z]+", " ", unit))
    ):
        apart = bare["space"] != ""
        word = bare["word"]
        if word not in _SHORT_UNITS and len(word) < (3 if apart else 5):
            return text, False
    return text[: found.start()].rstrip(), True
