"""Two ways of training compared on the same problems: differences, their intervals, and verdicts in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from multiticket.evaluate.paired import Difference, mcnemar, paired_difference
from multiticket.evaluate.problem_results import Results, require_same_problems, scores

MEASURES = ("pass@1", "greedy")


def compare(a: Sequence[Results], b: Sequence[Results], margin: float) -> dict[str, Any]:
    """B against A: for ``pass@1`` and ``greedy`` the difference B - A with intervals and a verdict at `margin`.

    McNemar's test is there for ``greedy`` where each side is one run.

    Raises:
        ValueError: the sides were not measured on the same problems in the same way, or the margin is out of bounds.
    """
    if not 0 < margin < 1:
        raise ValueError(f"The margin is a difference in accuracy, above 0 and below 1, but is {margin:g}.")
    require_same_problems(a[0], b[0])
    result: dict[str, Any] = {
        "a": [str(run.source) for run in a],
        "b": [str(run.source) for run in b],
        "n": len(a[0].problems),
        "samples": [min(run.samples for run in side) for side in (a, b)],
        "margin": margin,
    }
    for measure in MEASURES:
        samples = min(result["samples"]) if measure == "pass@1" else 1
        difference = paired_difference(scores(a, measure), scores(b, measure), samples)
        result[measure] = {
            **asdict(difference),
            "non_inferior": difference.not_worse_by(margin),
            "verdict": verdict(difference, margin),
        }
    if len(a) == len(b) == 1:
        result["greedy"]["mcnemar"] = asdict(mcnemar(a[0].greedy, b[0].greedy))
    return result


def verdict(difference: Difference, margin: float) -> str:
    """What the difference says about B being no worse than A by `margin`, and about which is better."""
    points = f"{100 * margin:g} point{'s' * (margin != 0.01)}"
    low, high = difference.interval
    if difference.not_worse_by(margin):
        said = f"B is not worse than A by {points} or more"
    elif difference.worse_by(margin):
        said = f"B is worse than A by more than {points}"
    else:
        said = f"not decided: B may or may not be worse than A by {points}"
    if low > 0:
        said += "; it is better"
    elif high < 0 and difference.not_worse_by(margin):
        said += ", though it is worse"
    return said
