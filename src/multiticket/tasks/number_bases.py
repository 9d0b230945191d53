r"""Numbers that name their base: `2516_8`, `A3_{16}`, `1011_{\text{two}}`.

The same digits in another base are another number, and math-verify does not look at it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)
_NAMES = _WORDS.split()
_BASED = re.compile(
    r"\(?(?P<digits>[0-9A-Za-z]*[0-9][0-9A-Za-z,]*)\)?_"
    r"(?:(?P<one>[0-9])|\{(?P<more>[0-9]+)\}|\{?\\?(?:text|mathrm)?\{?(?P<name>[a-z]+)\}?\}?)"
)


class InBase(NamedTuple):
    """Digits, lower-cased, and their base."""

    digits: str
    base: int

    @property
    def value(self) -> int | None:
        """None where a digit is none of this base, or Python knows no such base."""
        try:
            return int(self.digits, self.base) if 2 <= self.base <= 36 else None
        except ValueError:
            return None


def read_in_base(text: str) -> InBase | None:
    """The number that `text` is, if it names its base; None for anything else."""
    found = _BASED.fullmatch(re.sub(r"\s|\\[,!]", "", text))
    if found is None:
        return None
    name = found["name"]
    if name is not None and name not in _NAMES:
        return None
    base = int(found["one"] or found["more"]) if name is None else _NAMES.index(name)
    return InBase(found["digits"].replace(",", "").lower(), base)
