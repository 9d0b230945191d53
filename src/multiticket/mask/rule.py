"""The rule of a mask: the few numbers from which any machine rebuilds its positions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

VERSION = 1
"""Version of the algorithms that turn a rule into positions. Within one version they never change."""

_FIELDS = ("method", "density", "seed", "part", "scope", "version", "options")


@dataclass(frozen=True)
class MaskRule:
    """How a mask's positions are chosen. Immutable; the same rule gives the same positions for ever.

    Raises ValueError where a field is out of bounds.
    """

    method: str = "random"
    """``random``, ``numpy``, ``columns``, ... (`mask.selectors` has them all), or what the data said."""
    density: float | None = None
    """Chosen fraction of each tensor, in (0, 1]; None where the positions came from data alone."""
    seed: int = 0
    """0 ... 2**64 - 1. Two seeds give independent masks."""
    part: int = 0
    """Which slice of the seed's permutation: part p of density d takes places floor(p n d) and on."""
    scope: str = "all"
    """``all``, or name patterns as in a shell, separated by commas."""
    version: int = VERSION
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else a control method needs, as plain JSON values, e.g. ``{"layers": "first"}``."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not self.method:
            raise ValueError(f"A mask rule's method must be a name, not {self.method!r}.")
        if self.version != VERSION or isinstance(self.version, bool):
            raise ValueError(
                f"This mask rule is of version {self.version!r}, and this release reads version {VERSION}: use "
                "the release of multiticket that wrote it."
            )
        if not _is_int(self.seed) or not 0 <= self.seed < 2**64:
            raise ValueError(f"A mask's seed must be a whole number from 0 to 2**64 - 1, not {self.seed!r}.")
        if not isinstance(self.scope, str) or not self.scope.strip():
            raise ValueError(f"A mask's scope must be 'all' or name patterns, not {self.scope!r}.")
        if not _is_int(self.part) or self.part < 0:
            raise ValueError(f"A mask's part must be a whole number of at least 0, not {self.part!r}.")
        if self.density is not None:
            object.__setattr__(self, "density", check_density(self.density))
            parts = math.ceil(1 / exact_density(self.density))
            if self.part >= parts:
                raise ValueError(
                    f"Part {self.part} does not exist: density {self.density} has parts 0 to {parts - 1}."
                )
        object.__setattr__(self, "options", _plain_options(self.options))

    @property
    def share(self) -> float:
        """The density, for methods that need one. Raises ValueError where there is none."""
        if self.density is None:
            raise ValueError(f"A {self.method} mask needs a density above 0 and at most 1, such as 0.01.")
        return self.density

    def only_options(self, *known: str) -> None:
        """Raises ValueError where the rule has an option that its method does not know."""
        for option in self.options:
            if option not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none"
                raise ValueError(f"The {self.method} method has no option {option!r}; {takes}.")

    def __hash__(self) -> int:
        return hash(self.to_json())

    def to_json(self) -> str:
        """One line, the same bytes for equal rules (sorted keys, no spaces, ASCII)."""
        return json.dumps(
            {name: getattr(self, name) for name in _FIELDS}, sort_keys=True, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, text: str) -> MaskRule:
        """The rule that `to_json` wrote. Raises ValueError for anything else."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError("The mask rule is not readable JSON.") from error
        if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
            raise ValueError(f"A mask rule must have exactly the fields {', '.join(_FIELDS)}.")
        return cls(**fields)


def check_density(density: Any) -> float:
    """``density`` as a float in (0, 1], or a ValueError that says what is wrong with it."""
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ValueError(
            f"Density must be above 0 and at most 1 (0.01 trains one per cent), not {density!r}."
        )
    return float(density)


def exact_density(density: float) -> Fraction:
    """The decimal number that was written: 0.01 is one hundredth, not the nearest binary float."""
    return Fraction(repr(float(density)))


def places(numel: int, density: float, part: int = 0) -> tuple[int, int]:
    """First and one-past-last place, in a permutation of ``numel`` positions, of one part.

    Part p begins at floor(p n d), exactly, with d the decimal number as written, so that a hundred
    parts of density 0.01 tile every tensor. The one exception is the end of part 0 (and so the beginning
    of part 1): it is Python's ``int(numel * density)``, the published count, which float rounding puts one
    off the exact floor in rare cases, such as 100 positions at 0.29 (28, not 29).
    """

    def begin(p: int) -> int:
        if p == 1:
            return int(numel * density)
        exact = exact_density(density)
        return min(numel, p * numel * exact.numerator // exact.denominator)

    return begin(part), begin(part + 1)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with only JSON values in it, sorted by key."""
    try:
        plain = json.loads(json.dumps(dict(options), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("A mask rule's options must be plain JSON values under string keys.") from error
    if not all(isinstance(key, str) for key in options):
        raise ValueError("A mask rule's options must be plain JSON values under string keys.")
    return plain
