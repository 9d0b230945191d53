"""What was measured of composed tickets, as a section of a study's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from composition import BASE, SHUFFLED, Found
from multiticket.research.stats.verdicts import ALPHA, MARGIN, Judged
from multiticket.research.study.answers.formatting import rounded, span
from multiticket.research.study.answers.sides import margin_marks
from multiticket.research.study.page_section import Entry, Figure, PageSection, Series, Table, Verdict

PARTS = ("additive", "drift")
SCALED = " × "
"""Between a task vector's name and its factor, in combinations that scale it."""


def verdict_of(judged: Sequence[Judged]) -> Verdict:
    """Whether both tasks are kept: each not worse by the margin, at 5 %; or one worse, with both judged at once."""
    if any(one.worse for one in judged):
        return "not reproduced"
    return "reproduced" if all(one.p_worse <= ALPHA for one in judged) else "not decided"


def composition_section(
    found: Found, main: str, parameters: str, command: str, notes: Sequence[str], about: dict[str, Any]
) -> PageSection:
    """The section; the verdict is of the combination `main`.

    Args:
        parameters: what the runs were trained with, for a caption.
        about: settings, for the numbers.
    """
    whole = [name for name in found.combinations if SCALED not in name]
    judged = found.judged(whole)
    problems = found.scores(main, found.tasks[0]).shape[1], found.scores(main, found.tasks[1]).shape[1]
    return PageSection(
        name="compose",
        heading="Tickets of two tasks, disjoint and trained apart on one base, keep both tasks when applied together.",
        verdict=verdict_of(judged[main]),
        answer=_answer(found, main, judged),
        n=f"{len(found.seeds)} seeds of every run; {problems[0]:,} problems of {found.tasks[0]} and {problems[1]:,} of "
        f"{found.tasks[1]}, {found.samples(main, found.tasks[0])} samples each",
        command=command,
        notes=[
            f"{parameters}",
            f"Differences are from what was trained on the one task alone, paired by problem; the margin is "
            f"{100 * MARGIN:g} points.",
            "Shuffled: the ticket's changes in random order within each tensor, as far and in no direction.",
            "KL is exact over the vocabulary, in nats a completion, in contexts sampled from the first of the two "
            "policies; validation problems.",
            *notes,
        ],
        figures=[*_differences(found, judged), *_scaled_figures(found)],
        tables=[_scores(found, judged), _drift(found), _interference(found), *_scaled_table(found)],
        numbers={
            **about,
            "seeds": [seed.plain() for seed in found.seeds],
            "judged": {
                name: {
                    task: {
                        "difference": one.difference.difference,
                        "interval": list(one.difference.interval),
                        "p_worse": one.p_worse,
                        "worse": one.worse,
                        "not_worse": one.not_worse,
                    }
                    for task, one in zip(found.tasks, both, strict=True)
                }
                for name, both in judged.items()
            },
        },
    )


def _answer(found: Found, main: str, judged: dict[str, list[Judged]]) -> str:
    first = found.combinations[main].apart
    said = [
        f"Applied together: {_pair(found, main)}, where apart {_own(found, first)} and the base "
        f"{_pair(found, BASE)} (pass@1, {' / '.join(found.tasks)})."
    ]
    others = [name for name in judged if name != main and SHUFFLED not in name]
    if others:
        said.append("Others: " + "; ".join(f"{name} {_pair(found, name)}" for name in others) + ".")
    drifts, alone = [], []
    for task, own, other in zip(found.tasks, first, first[::-1], strict=True):
        by_itself = found.number("kl_from_base", other, task, "completion")
        trained = found.number("kl_from_base", own, task, "completion")
        share = found.number("interference", main, task, "interaction")
        alone.append(f"{other} alone has {100 * found.accuracy(other, task):.1f} % of {task}")
        drifts.append(
            f"on {task} {other} by itself moves the base by {by_itself:.2f} nats a completion, where {own} moved it by "
            f"{trained:.2f}, and {100 * share:.0f} % of what it changes in {own} is interaction of the two"
        )
    said.append(f"Why: {'; '.join(alone)}; {'; '.join(drifts)}.")
    mixed = [name for name in judged if SHUFFLED in name]
    if mixed:
        said.append(f"Without direction: {'; '.join(f'{name} {_pair(found, name)}' for name in mixed)}.")
    return " ".join(said)


def _pair(found: Found, state: str) -> str:
    return " / ".join(f"{100 * found.accuracy(state, task):.1f}" for task in found.tasks) + " %"


def _own(found: Found, apart: tuple[str, str]) -> str:
    return " / ".join(
        f"{100 * found.accuracy(own, task):.1f}" for own, task in zip(apart, found.tasks, strict=True)
    )


def _scores(found: Found, judged: dict[str, list[Judged]]) -> Table:
    measures = ("{}, %", "95 %", "greedy, %", "minus apart", "95 %")
    columns = ["state", *(measure.format(task) for task in found.tasks for measure in measures)]
    rows: list[list[Entry]] = []
    for state in found.states:
        if SCALED in state:
            continue
        row: list[Entry] = [state]
        for place, task in enumerate(found.tasks):
            row += _with_interval(found, state, task)
            row.append(rounded(100 * float(found.scores(state, task, "greedy").mean())))
            apart = judged[state][place].difference if state in judged else None
            row += [rounded(100 * apart.difference), span(apart.interval)] if apart else [None, None]
        rows.append(row)
    caption = (
        "Accuracy on both tasks (pass@1 of samples, and greedy), and differences from what was trained apart"
    )
    return Table(caption=f"{caption}, in percentage points", columns=columns, rows=rows)


def _drift(found: Found) -> Table:
    """How far each task vector goes, in the weights and in the policy."""
    kls = [f"KL from base, {task}" for task in found.tasks]
    trained_on = {own: place for one in found.combinations.values() for place, own in enumerate(one.apart)}
    rows: list[list[Entry]] = []
    for name in found.singles:
        sizes = [found.number("sizes", name, key) for key in ("relative", "relative_there")]
        moved = round(found.number("sizes", name, "moved"))
        kl = [found.number("kl_from_base", name, task, "completion") for task in found.tasks]
        row: list[Entry] = [name, moved, *(_short(value) for value in (*sizes, *kl))]
        off = (
            None if name not in trained_on else kl[1 - trained_on[name]] / (kl[trained_on[name]] or math.inf)
        )
        rows.append([*row, None if off is None else _short(off)])
    return Table(
        caption="How far each task vector goes: changed values, its norm over that of all weights and of the changed "
        "ones, and KL(base || it) in nats a completion on either task; last, that off its own task over that on it",
        columns=["task vector", "values", "of weights", "of changed", *kls, "off / own"],
        rows=rows,
    )


def _interference(found: Found) -> Table:
    rows: list[list[Entry]] = []
    for name, one in found.combinations.items():
        for task, own in zip(found.tasks, one.apart, strict=True) if SCALED not in name else ():
            numbers: list[Entry] = [_short(found.number("kl_from_apart", name, task, "completion"))]
            if name in found.seeds[0].interference:
                kl = [found.number("interference", name, task, key, "completion") for key in PARTS]
                kl += [found.number("interference", name, task, "interaction"), found.number("cosines", name)]
                numbers += map(_short, kl)
            rows.append([name, task, own, *numbers, *[None] * (5 - len(numbers))])
    return Table(
        caption="What the other task's vector does: KL from what was trained on a task alone, in its contexts (nats a "
        "completion); the same if logits added up; KL(base || other) in these contexts; the share of the change of "
        "logits that is interaction; the cosine of the two task vectors",
        columns=["combination", "task", "alone", "KL", "if additive", "drift", "interaction", "cosine"],
        rows=rows,
    )


def _differences(found: Found, judged: dict[str, list[Judged]]) -> list[Figure]:
    """One figure a task."""
    figures = []
    for place, task in enumerate(found.tasks):
        differences = {name: both[place].difference for name, both in judged.items()}
        said = "; ".join(f"{name} {100 * one.difference:+.1f}" for name, one in differences.items())
        shares = [one.difference for one in differences.values()]
        ends = [one.interval for one in differences.values()]
        series = Series.with_ends(task, list(differences), shares, ends, scale=100)
        figures.append(
            Figure(
                kind="intervals",
                caption=f"Accuracy on {task} minus that of what was trained on it alone, with 95 % intervals.",
                alternative=f"Differences on {task} in percentage points: {said}.",
                x_label=f"{task}: difference, percentage points",
                series=[series],
                marks=margin_marks(MARGIN, "as apart"),
            )
        )
    return figures


def _scaled(found: Found) -> dict[str, list[tuple[float, str]]]:
    """Of each scaled task vector: factors and states, in order."""
    curves: dict[str, list[tuple[float, str]]] = {}
    for name, one in found.combinations.items():
        if SCALED in name:
            (factor, part) = next((f, part) for f, part in one.parts if f != 1)
            curves.setdefault(part, []).append((factor, name))
    return {part: sorted(points) for part, points in curves.items()}


def _with_ends(found: Found, part: str, points: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The curve from the other task vector alone to both together, where these were measured."""
    apart = found.combinations[points[0][1]].apart
    other = apart[1] if part == apart[0] else apart[0]
    both = [
        name
        for name, one in found.combinations.items()
        if one.apart == apart and sorted(one.parts) == sorted(((1.0, apart[0]), (1.0, apart[1])))
    ]
    return [(0.0, other), *points, *((1.0, name) for name in both[:1])]


def _scaled_figures(found: Found) -> list[Figure]:
    figures = []
    for part, points in _scaled(found).items():
        curve = _with_ends(found, part, points)
        series = [
            Series.with_ends(
                task,
                [factor for factor, _ in curve],
                [found.accuracy(state, task) for _, state in curve],
                [found.interval(state, task) for _, state in curve],
                scale=100,
            )
            for task in found.tasks
        ]
        said = "; ".join(f"{factor:g}: {_pair(found, state)}" for factor, state in curve)
        figures.append(
            Figure(
                kind="chart",
                caption=f"{part}, scaled, on top of the other ticket whole: accuracy on both tasks, 95 % intervals.",
                alternative=f"Accuracy on {' and '.join(found.tasks)} by factor: {said}.",
                x_label=f"factor of {part}",
                y_label="pass@1, %",
                series=series,
            )
        )
    return figures


def _scaled_table(found: Found) -> list[Table]:
    rows: list[list[Entry]] = [
        [part, factor, *(cell for task in found.tasks for cell in _with_interval(found, state, task))]
        for part, points in _scaled(found).items()
        for factor, state in _with_ends(found, part, points)
    ]
    columns = ["scaled", "factor", *(name for task in found.tasks for name in (f"{task}, %", "95 %"))]
    caption = "One ticket scaled on top of the other"
    return [Table(caption=caption, columns=columns, rows=rows, folded=True)] if rows else []


def _with_interval(found: Found, state: str, task: str) -> tuple[float, str]:
    return rounded(100 * found.accuracy(state, task)), _span(found.interval(state, task))


def _span(interval: tuple[float, float]) -> str:
    """``57.1 to 60.2``, in percent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _short(value: float) -> float:
    return float(f"{value:.3g}")
