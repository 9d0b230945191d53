"""Kind `training`: what the runs of some cells did while they trained. It decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from multiticket.research.stats.running_mean import WINDOW, running_mean
from multiticket.research.study.answers.formatting import rounded, three_digits
from multiticket.research.study.evidence import Evidence, Finished, by, setting_name
from multiticket.research.study.page_section import Figure, Mark, PageSection, Series, Table
from multiticket.research.study.questions import Question
from multiticket.runs.folder import RunFolder, read_metrics

PHASES = {"generate_s": "generating s", "train_s": "passes s", "step_s": "optimiser s", "kl_s": "KL s"}
"""Seconds of a step, in ``metrics.jsonl``, and the column that has their median."""
MEMORY = {
    "generate_peak_bytes": "generating GB",
    "train_peak_bytes": "passes GB",
    "step_peak_bytes": "optimiser GB",
    "kl_peak_bytes": "KL GB",
}
"""Bytes of a phase, in ``metrics.jsonl``, and the column that has the most over all steps."""
Line = dict[str, Any]
Row = tuple[str, Finished, list[Line]]
"""A run with its cell's label and the lines of its metrics."""


def answer_training(question: Question, evidence: Evidence) -> PageSection:
    """Of each cell in `cells`: reward and KL over steps, rates, scores, time and memory by phase.

    Over the runs of a cell, figures show the mean, and the lowest and highest run.
    """
    runs = {
        label: [(run, read_metrics(RunFolder(run.folder).metrics)) for run in evidence.scored(label)]
        for label in question.options["cells"]
    }
    runs = {label: own for label, own in runs.items() if own}
    done, count = evidence.progress(question.options["cells"])
    settings = by([run for own in runs.values() for run, _ in own], lambda run: run.setting)
    figures, tables = [], []
    for setting in settings:
        here = {
            label: [pair for pair in own if pair[0].setting == setting]
            for label, own in runs.items()
            if any(run.setting == setting for run, _ in own)
        }
        figures += _figures(setting_name(setting), here)
        tables += _tables(setting_name(setting), here)
    return PageSection(
        name=question.name,
        heading=question.claim,
        answer="; ".join(
            f"{setting_name(setting)}: base {100 * own[0].result['eval']['before']['pass@1']:.1f} %, "
            + ", ".join(_said(label, own) for label, own in by(own, _labels_of(runs)).items())
            for setting, own in settings.items()
        )
        + "."
        if settings
        else "No run is finished.",
        n=f"{done} of {count} runs",
        command=evidence.command,
        figures=figures,
        tables=tables,
    )


def _labels_of(runs: Mapping[str, Sequence[tuple[Finished, Any]]]) -> Callable[[Finished], str]:
    return lambda run: next(label for label, own in runs.items() if any(one is run for one, _ in own))


def _said(label: str, runs: Sequence[Finished]) -> str:
    scores = ", ".join(f"{100 * run.score('pass@1'):.1f}" for run in runs)
    return f"{label} {scores} %"


def _figures(setting: str, runs: Mapping[str, Sequence[tuple[Finished, list[Line]]]]) -> list[Figure]:
    def chart(key: str, what: str, y_label: str, log: bool) -> Figure | None:
        series = [_over_steps(label, [lines for _, lines in own], key) for label, own in runs.items()]
        if log and not all(value > 0 for one in series for value in (*one.y, *(one.low or ()))):
            return None  # not measured, or nothing moved
        return Figure(
            kind="chart",
            caption=f"{setting}: {what}, mean of {WINDOW} steps; bands go from the lowest run to the highest.",
            alternative=f"{what} over optimiser steps, a line for each of {', '.join(runs)}.",
            x_label="optimiser step",
            y_label=y_label,
            y_log=log,
            series=series,
        )

    drawn = [
        _scores(setting, runs),
        chart("reward", "Reward of each step's rollouts on training problems", "reward", log=False),
        chart("kl_per_completion", "KL that each step moved", "nats a completion", log=True),
    ]
    return [figure for figure in drawn if figure is not None]


def _scores(setting: str, runs: Mapping[str, Sequence[tuple[Finished, list[Line]]]]) -> Figure:
    """Each run's accuracy with its interval over problems, and the base's."""
    every = [(label, run) for label, own in runs.items() for run, _ in own]
    base = every[0][1].result["eval"]["before"]
    series = [
        Series.with_ends(
            label,
            [f"{label}, seed {run.config.training_seed}" for run, _ in own],
            [run.score("pass@1") for run, _ in own],
            [run.result["eval"]["after"]["interval"] for run, _ in own],
            scale=100,
        )
        for label, own in runs.items()
    ]
    said = "; ".join(f"{label} {100 * run.score('pass@1'):.1f} %" for label, run in every)
    return Figure(
        kind="intervals",
        caption=f"{setting}: accuracy on {base['n']} {base['split']} problems, 95 % intervals over problems.",
        alternative=f"Accuracy, of the base {100 * base['pass@1']:.1f} %: {said}.",
        x_label=f"accuracy on {base['n']} {base['split']} problems, %",
        series=series,
        marks=[Mark(at=100 * base["pass@1"], label=f"base {100 * base['pass@1']:.1f} %")],
    )


def _over_steps(label: str, runs: Sequence[list[Line]], key: str) -> Series:
    """The mean over runs at each step that all have, and from the lowest to the highest."""
    smooth = [running_mean([float(line.get(key) or 0) for line in lines], WINDOW) for lines in runs]
    steps = range(1, min(map(len, smooth)) + 1)
    at = list(zip(*smooth, strict=False))
    several = len(runs) > 1
    return Series(
        name=label if not several else f"{label}, {len(runs)} runs",
        x=[float(step) for step in steps],
        y=[fmean(values) for values in at],
        low=[min(values) for values in at] if several else None,
        high=[max(values) for values in at] if several else None,
    )


def _tables(setting: str, runs: Mapping[str, Sequence[tuple[Finished, list[Line]]]]) -> list[Table]:
    every = [(label, run, lines) for label, own in runs.items() for run, lines in own]
    weighed = [one for one in every if any(line.get(key) for line in one[2] for key in MEMORY)]
    return [_what_came_of_each(setting, every), *([_memory(setting, weighed)] if weighed else [])]


def _named(one: Row) -> str:
    return f"{one[0]}, seed {one[1].config.training_seed}"


def _what_came_of_each(setting: str, runs: Sequence[Row]) -> Table:
    columns: dict[str, Callable[[Row], Any]] = {
        "run": _named,
        "trained values": lambda one: one[1].result["nnz"],
        "rate": lambda one: three_digits(one[1].result["learning_rate"]),
        "before %": lambda one: rounded(100 * one[1].result["eval"]["before"]["pass@1"]),
        "after %": lambda one: rounded(100 * one[1].score("pass@1")),
        "greedy %": lambda one: rounded(100 * one[1].score("greedy")),
        "tokens": lambda one: round(_mean(one[2][-WINDOW:], "completion_length"), 1),
        **{name: _seconds(key) for key, name in PHASES.items()},
        "training min": lambda one: round(one[1].result["train_s"] / 60, 1),
        "peak GB": lambda one: _gigabytes(one[1].result.get("peak_memory_bytes")),
    }
    return Table.of(
        f"{setting}: each run; tokens of a completion at the end, and median seconds of a step by phase",
        runs,
        columns,
    )


def _memory(setting: str, runs: Sequence[Row]) -> Table:
    columns: dict[str, Callable[[Row], Any]] = {
        "run": _named,
        **{name: _most(key) for key, name in MEMORY.items()},
        "measuring GB": lambda one: _gigabytes(one[1].result.get("evaluation_peak_bytes")),
    }
    return Table.of(
        f"{setting}: the most memory that a run held in each phase, and while it was measured; what the phases before "
        "have left included",
        runs,
        columns,
    )


def _most(key: str) -> Callable[[Row], float | None]:
    return lambda one: _gigabytes(max(line.get(key) or 0 for line in one[2]))


def _gigabytes(count: int | None) -> float | None:
    return rounded(count / 1e9) if count else None


def _seconds(key: str) -> Callable[[tuple[str, Finished, list[Line]]], float]:
    return lambda one: rounded(median([float(line.get(key) or 0) for line in one[2]] or [0.0]))


def _mean(lines: Sequence[Line], key: str) -> float:
    return fmean([float(line.get(key) or 0) for line in lines] or [0.0])
