"""The reward over training of several runs, with the test scores that they end at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multiticket.research.stats.running_mean import WINDOW, running_mean
from multiticket.research.study.page_section import Figure, Mark, Series


def curves(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]], Mapping[str, Any]]]) -> list[Figure]:
    """Each run's mean reward a step, and its test accuracy with the 95 % interval.

    Args:
        runs: name, lines of ``metrics.jsonl``, and ``result.json`` of each run.
    """
    base = runs[0][2]["eval"]["before"]
    series = [
        Series(
            name=name,
            x=[line["step"] for line in lines],
            y=running_mean([line["reward"] for line in lines], WINDOW),
        )
        for name, lines, _ in runs
    ]
    scores = [result["eval"]["after"] for _, _, result in runs]
    names = [
        f"{name}: {100 * score['pass@1']:.1f} %" for (name, _, _), score in zip(runs, scores, strict=True)
    ]
    ends = [score["interval"] for score in scores]
    after = Series.with_ends("after", names, [score["pass@1"] for score in scores], ends, scale=100)
    return [
        Figure(
            kind="chart",
            caption="Reward of each step's rollouts on training problems.",
            alternative="Mean reward over optimiser steps, a line a run.",
            x_label="optimiser step",
            y_label=f"reward, mean of {WINDOW} steps",
            series=series,
        ),
        Figure(
            kind="intervals",
            caption=f"Accuracy on {base['n']} {base['split']} problems, with 95 % intervals.",
            alternative=f"Accuracy after training: {'; '.join(names)}.",
            x_label=f"accuracy on {base['n']} {base['split']} problems, %",
            series=[after],
            marks=[Mark(at=100 * base["pass@1"], label=f"base {100 * base['pass@1']:.1f} %")],
        ),
    ]
