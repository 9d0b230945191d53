"""The reward over training of several runs, with the test scores that they end at, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

COLOURS = ("#1b1f24", "#0969da", "#e36209", "#1a7f37", "#8250df", "#cf222e")
"""The first is for the full arm."""
WINDOW = 5
"""Steps in the running mean."""


def draw_curves(
    runs: Sequence[tuple[str, Sequence[Mapping[str, Any]], Mapping[str, Any]]], path: Path, title: str
) -> None:
    """Write a PNG: on the left each run's mean reward a step, on the right test accuracy with its 95 % interval.

    Args:
        runs: name, lines of ``metrics.jsonl``, and ``result.json`` of each run.
    """
    with plt.rc_context({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (curves, scores) = plt.subplots(
            1, 2, figsize=(10, 4.2), width_ratios=(3, 1.5), layout="constrained", sharey=True
        )
        for colour, (name, lines, _) in zip(COLOURS, runs, strict=False):
            steps = [line["step"] for line in lines]
            rewards = [line["reward"] for line in lines]
            curves.plot(steps, rewards, color=colour, alpha=0.22, linewidth=1)
            curves.plot(steps, running_mean(rewards, WINDOW), color=colour, linewidth=2.2, label=name)
        curves.set(xlabel="optimiser step", ylabel="mean reward", ylim=(0, 1), xlim=(1, None))
        curves.set_title("reward of each step's rollouts, training problems", loc="left", fontsize=10.5)
        curves.legend(loc="lower right", frameon=False)

        base = runs[0][2]["eval"]["before"]
        scores.axhspan(*base["interval"], color="#8c959f", alpha=0.2, linewidth=0)
        scores.axhline(base["pass@1"], color="#8c959f", linewidth=1.5)
        scores.text(-0.45, base["interval"][1] + 0.015, f"base {100 * base['pass@1']:.1f} %", color="#57606a")
        for place, (colour, (_, _, result)) in enumerate(zip(COLOURS, runs, strict=False)):
            after = result["eval"]["after"]
            low, high = after["interval"]
            scores.plot([place, place], [low, high], color=colour, linewidth=2.2)
            scores.plot([place], [after["pass@1"]], "o", color=colour, markersize=7)
            scores.text(place, high + 0.025, f"{100 * after['pass@1']:.1f} %", color=colour, ha="center")
        scores.set_xticks(range(len(runs)), [name.replace(", ", "\n") for name, _, _ in runs])
        scores.set(xlim=(-0.5, len(runs) - 0.5))
        scores.grid(axis="y", color="#d0d7de", linewidth=0.6)
        curves.grid(axis="y", color="#d0d7de", linewidth=0.6)
        scores.set_title(f"accuracy on {base['n']} {base['split']} problems", loc="left", fontsize=10.5)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def running_mean(numbers: Sequence[float], window: int) -> list[float]:
    """The mean of each number and up to `window` - 1 before it."""
    means = []
    for place in range(len(numbers)):
        recent = numbers[max(0, place - window + 1) : place + 1]
        means.append(sum(recent) / len(recent))
    return means
