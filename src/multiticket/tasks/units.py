"""Units that are known to be different ones: 18 cm is not 18 m. Of other words nothing is said."""

from __future__ import annotations

_SAME = (
    "mm millimeter millimeters millimetre millimetres",
    "cm centimeter centimeters centimetre centimetres",
    "m meter meters metre metres",
    "km kilometer kilometers kilometre kilometres",
    "in inch inches",
    "ft foot feet",
    "yd yard yards",
    "mi mile miles",
    "mg milligram milligrams",
    "g gram grams",
    "kg kilogram kilograms",
    "lb lbs pound pounds",
    "oz ounce ounces",
    "ml milliliter milliliters millilitre millilitres",
    "l liter liters litre litres",
    "s sec secs second seconds",
    "min mins minute minutes",
    "h hr hrs hour hours",
    "day days",
    "week weeks",
    "month months",
    "year years yr yrs",
    "dollar dollars usd",
    "cent cents",
)
_KIND = {word: number for number, words in enumerate(_SAME) for word in words.split()}


def differ(one: str | None, other: str | None) -> bool:
    """Whether both are known units, and not the same."""
    if one not in _KIND or other not in _KIND:
        return False
    return _KIND[one] != _KIND[other]
