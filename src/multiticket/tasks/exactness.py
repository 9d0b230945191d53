r"""Hold math-verify's "equal" to exact values: it rounds to six decimals and 15 digits, absolutely.

So `2^{-99}` passes for `2^{-98}`, and `4 \cdot 10^{-7}` for `10^{-7}`. Here both sides are evaluated to 60 digits, free
variables at fixed values, and compared relative to their size. What is written as a decimal may stand for a number that
no decimal is, rounded to six digits or more: `0.333333` for `1/3`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

DIGITS = 60
EXACT = 1e-40
"""Relative difference up to which two values are the same number."""
ROUNDED = 2e-6
"""Relative difference up to which a decimal is a number, rounded."""
MOST_SOLUTIONS = 4


def differ(one: Any, other: Any) -> bool:
    """Whether two of math-verify's expressions are surely not equal; False where that cannot be told."""
    from sympy import Basic, Eq, MatrixBase

    if not isinstance(one, (Basic, MatrixBase)) or not isinstance(other, (Basic, MatrixBase)):
        return False
    if _is_identity(one) or _is_identity(other):
        return bool(one != other)  # nothing to solve: math-verify takes any two for the same
    if one.free_symbols != other.free_symbols:
        return False  # a label on one side, or a name against a product of letters
    if isinstance(one, Eq) and isinstance(other, Eq) and one.lhs == other.lhs:
        one, other = one.rhs, other.rhs
    if isinstance(one, Eq) and isinstance(other, Eq):
        return _solutions_differ(one, other) or _solutions_differ(other, one)
    mine, theirs = _values(one), _values(other)
    if mine is None or theirs is None or len(mine[0]) != len(theirs[0]):
        return False
    pairs = [mine[0], theirs[0]]
    if not (mine[1] and theirs[1]):
        pairs = [sorted(numbers, key=_Number.place) for numbers in pairs]
    return any(_far(a, b) for a, b in zip(*pairs, strict=True))


def value(expression: Any) -> str | None:
    """The value of an expression without variables, a decimal of 30 digits; None where it has none that is real."""
    found = _evaluated(expression) if not getattr(expression, "free_symbols", True) else None
    if found is None or not found.is_real or not found.is_finite:
        return None
    return f"{float(found):.30g}" if abs(found) < 1e-300 else str(found.evalf(30))


def _values(expression: Any) -> tuple[list[_Number], bool] | None:
    """The numbers of an expression (one, or those of its container), and whether their order says something."""
    from sympy import Basic, FiniteSet, Float, Interval, MatrixBase, MatrixExpr, Tuple, UnevaluatedExpr

    expression = _right_side(expression)
    ordered = True
    if isinstance(expression, MatrixExpr):
        try:
            expression = expression.doit()
        except Exception:
            return None
    if isinstance(expression, MatrixBase):
        parts = list(expression.flat())
    elif isinstance(expression, (Tuple, Interval)):
        parts = list(expression.args[:2]) if isinstance(expression, Interval) else list(expression.args)
    elif isinstance(expression, FiniteSet):
        parts, ordered = list(expression.args), False
    else:
        parts = [expression]
    found = []
    for part in (side for whole in parts for side in _sides(whole)):
        number = _evaluated(part) if isinstance(part, Basic) else None
        if number is None:
            return None
        found.append(_Number(number, part.has(Float), part.has(UnevaluatedExpr)))
    return found, ordered


def _right_side(expression: Any) -> Any:
    """`x = 18` says 18."""
    from sympy import Eq

    return expression.rhs if isinstance(expression, Eq) and expression.lhs.is_Symbol else expression


def _sides(part: Any) -> list[Any]:
    """What of an element is compared: the value of `x = 18`, both sides of `f(2) = 18`."""
    from sympy import Eq

    return list(part.args) if isinstance(part, Eq) and not part.lhs.is_Symbol else [_right_side(part)]


def _solutions_differ(one: Any, other: Any) -> bool:
    """Whether a solution of one equation is none of another of the same variables; False where none can be found."""
    from sympy import Float, solve

    symbols = sorted(one.free_symbols, key=str)
    for unknown in symbols:
        places = {symbol: place for symbol, place in _places(one).items() if symbol != unknown}
        try:
            found = solve((one.lhs - one.rhs).doit().subs(places), unknown)
        except Exception:
            continue
        for solution in found[:MOST_SOLUTIONS]:
            sides = [_evaluated(side.subs({**places, unknown: solution})) for side in other.args]
            if sides[0] is not None and sides[1] is not None:
                return _apart(sides[0], sides[1], one.has(Float) or other.has(Float))
    return False


def _is_identity(expression: Any) -> bool:
    """Whether it is an equation that always holds: `2 = 2`, `(x + 1)^2 = x^2 + 2 x + 1`."""
    from sympy import Eq

    if not isinstance(expression, Eq) or expression.lhs.is_Symbol:
        return False
    sides = [_evaluated(side) for side in expression.args]
    return sides[0] is not None and sides[1] is not None and not _apart(sides[0], sides[1], False)


class _Number(NamedTuple):
    """A value to `DIGITS` digits, and how it was written."""

    value: Any
    decimal: bool
    percent: bool

    def place(self) -> tuple[float, float]:
        real, imaginary = self.value.as_real_imag()
        return float(real), float(imaginary)


def _places(expression: Any) -> dict[Any, Any]:
    """Where variables are looked at: a number for each name."""
    from sympy import Rational, Symbol
    from sympy.core.function import AppliedUndef

    symbols = expression.atoms(Symbol, AppliedUndef)
    return {s: Rational(1_000_003 + 7919 * sum(str(s).encode()), 1_234_577) for s in symbols}


def _evaluated(expression: Any) -> Any:
    """A number of `DIGITS` digits, variables at fixed values (by their names); None for what is no expression."""
    from sympy import Expr, Float, Rational, oo, zoo

    if not isinstance(expression, Expr):
        return None
    try:
        exact = expression.doit().subs({f: Rational(str(f)) for f in expression.atoms(Float)})
        number = exact.subs(_places(expression)).evalf(DIGITS)
    except Exception:
        return None
    return number if number.is_number and not number.has(oo, zoo) and not number.free_symbols else None


def _far(one: _Number, other: _Number) -> bool:
    """A percentage is read both ways, as math-verify does: 50 % is 50 and 0.5."""
    from sympy import Rational

    factors = (1, 100, Rational(1, 100)) if one.percent or other.percent else (1,)
    return all(_apart(one.value * factor, other.value, one.decimal != other.decimal) for factor in factors)


def _apart(a: Any, b: Any, rounding: bool) -> bool:
    size = max(abs(a), abs(b))
    return bool(size != 0 and abs(a - b) / size > (ROUNDED if rounding else EXACT))
