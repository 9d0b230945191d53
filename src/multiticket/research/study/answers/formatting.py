"""Numbers as an answer says them."""

from __future__ import annotations

from multiticket.research.stats.verdicts import Judged


def judged_word(judged: Judged) -> str:
    return "not worse" if judged.not_worse else "worse" if judged.worse else "not decided"


def rounded(value: float) -> float:
    """To a hundredth: of a percentage point."""
    return round(value, 2)


def three_digits(value: float | None) -> float | None:
    """Three significant digits; None, as of a rate that was not found, stays None."""
    return None if value is None else float(f"{value:.3g}")


def points(share: float) -> str:
    """A difference of shares in percentage points, with a sign: ``−1.5``."""
    return f"{100 * share:+.1f}".replace("-", "−")


def span(interval: tuple[float, float]) -> str:
    """``−2.1 to +0.4``, in points."""
    return f"{points(interval[0])} to {points(interval[1])}"


def p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"
