"""A measurement as tables and figures, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.filesize import decimal

from multiticket.arms.facts import ARMS
from multiticket.research.bench.timed_arms import ADAPTERS, FLOOR
from multiticket.research.study.page_section import Entry, Figure, Mark, Series, Table

AXES = {"density": "density", "width": "width of the model", "tokens": "tokens in a step"}
NAMES = {FLOOR: FLOOR, **{name: facts.family for name, facts in ARMS.items()}}
Result = Mapping[str, Any]


def references(result: Result) -> list[str]:
    """Kinds of the measured arms that others are compared to."""
    kinds = {arm["kind"] for arm in result["arms"]}
    return [kind for kind in ("full", *ADAPTERS, FLOOR) if kind in kinds]


def table(result: Result, kinds: Sequence[str] | None = None, caption: str = "") -> Table:
    """A row an arm, with its ratios to the arms of `kinds`, default all of `references`."""
    compared = references(result) if kinds is None else kinds

    def over(kind: str, arm: Result) -> str:
        return "1" if arm["kind"] == kind else ratio_text(arm["over"].get(kind))

    def predicted(arm: Result) -> str:
        return f"{arm['predicted_over_floor']:.2f}"

    columns: dict[str, Callable[[Result], Entry]] = {
        "arm": lambda arm: arm["arm"],
        "trained values": lambda arm: arm["trained"],
        "step (quartiles)": lambda arm: _time(arm["time"]),
        **{f"time / {NAMES[kind]} (95 %)": partial(over, kind) for kind in compared},
        **({"operations / floor": predicted} if FLOOR in compared else {}),
        "memory at peak": lambda arm: decimal(arm["memory"]["peak"]),
        "at rest": lambda arm: decimal(arm["memory"]["rest"]),
        "process": lambda arm: decimal(arm["memory"]["resident"]),
    }
    return Table.of(caption, result["arms"], columns)


def sweep_table(result: Result) -> Table:
    """A row a point."""
    return Table.of(
        "",
        result["points"],
        {
            AXES[result["sweep"]]: lambda point: f"{point['value']:g}",
            "trained values": lambda point: point["ticket"]["trained"],
            "ticket's step (quartiles)": lambda point: _time(point["ticket"]["time"]),
            "ticket / full (95 %)": lambda point: ratio_text(point["ticket"]["over"]["full"]),
            "ticket / floor (95 %)": lambda point: ratio_text(point["ticket"]["over"]["floor"]),
            "full / floor (95 %)": lambda point: ratio_text(point["full"]["over"]["floor"]),
            "operations: ticket / floor": lambda point: f"{point['ticket']['predicted_over_floor']:.2f}",
        },
    )


def caption(conditions: Result) -> str:
    """What was measured, in a sentence's half."""
    shape = conditions["shape"]
    place = "one GPU" if conditions["device"] == "cuda" else f"{conditions['threads']} CPU threads"
    place += ", compiled" if conditions.get("compiled") else ""
    processes = conditions.get("processes", 1)
    rounds = f"{conditions['rounds']} rounds" + (f" in {processes} processes an arm" if processes > 1 else "")
    return (
        f"Qwen2 of {conditions['parameters'] / 1e6:.1f} M parameters ({shape['layers']} layers, width "
        f"{shape['width']}, vocabulary {shape['vocabulary']:,}), {conditions['batch']} x {conditions['tokens']} "
        f"tokens, {conditions['dtype']}, {place}, {rounds}"
    )


def ratio_text(found: Mapping[str, Any] | None) -> str:
    """``1.12 (1.05 to 1.20)``; nothing where it was not measured."""
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['median']:.2f} ({low:.2f} to {high:.2f})"


def _time(found: Mapping[str, float]) -> str:
    middle, low, high = (1000 * found[key] for key in ("median", "quartile_1", "quartile_3"))
    digits = 0 if middle >= 100 else 1
    return f"{middle:.{digits}f} ms ({low:.{digits}f} to {high:.{digits}f})"


def figures(result: Result) -> list[Figure]:
    """Time over the floor's and memory of each arm, or how the time goes over a sweep."""
    return [_over_sweep(result)] if "sweep" in result else [time_over(result, FLOOR), _memory(result)]


def time_over(result: Result, kind: str, place: str = "this machine") -> Figure:
    """Each arm's time over that of the arm of a kind."""
    of = {FLOOR: "the floor", "full": "full training"}.get(kind, NAMES[kind])
    arms = [arm for arm in result["arms"] if kind in arm["over"]]
    ratios = [arm["over"][kind] for arm in arms]
    said = "; ".join(f"{arm['arm']} {ratio_text(ratio)}" for arm, ratio in zip(arms, ratios, strict=True))
    rows = [ratio["median"] for ratio in ratios], [ratio["interval"] for ratio in ratios]
    return Figure(
        kind="intervals",
        caption=f"Time of a step over that of {of}; {place}. {caption(result)}.",
        alternative=f"Ratios of times with 95 % intervals: {said}.",
        x_label=f"time over that of {of}",
        series=[Series.with_ends(place, [arm["arm"] for arm in arms], *rows)],
        marks=[Mark(at=1, label=NAMES[kind])],
    )


def _memory(result: Result) -> Figure:
    arms = result["arms"]
    peaks = [arm["memory"]["peak"] for arm in arms]
    ends = [(arm["memory"]["rest"], arm["memory"]["peak"]) for arm in arms]
    return Figure(
        kind="intervals",
        caption="Memory above the model's weights at a step's peak; bars reach back to what is held at rest.",
        alternative="Memory at the peak and at rest, an arm a row.",
        x_label="MB above weights: at peak, and back to rest",
        series=[Series.with_ends("memory", [arm["arm"] for arm in arms], peaks, ends, scale=1e-6)],
    )


def _over_sweep(result: Result) -> Figure:
    series = []
    places = [point["value"] for point in result["points"]]
    for side, name in (
        ("full", "full"),
        ("ticket", "ticket" if result["sweep"] == "density" else "ticket 1 %"),
    ):
        ratios = [point[side]["over"]["floor"] for point in result["points"]]
        rows = [ratio["median"] for ratio in ratios], [ratio["interval"] for ratio in ratios]
        series.append(Series.with_ends(name, places, *rows))
        predicted = [point[side]["predicted_over_floor"] for point in result["points"]]
        series.append(Series(name=f"{name}, by operations alone", x=places, y=predicted))
    return Figure(
        kind="chart",
        caption=caption(result["runs"][0]),
        alternative=f"Time of a step over the floor's, over the {AXES[result['sweep']]}.",
        x_label=AXES[result["sweep"]],
        y_label="step time over the floor's",
        x_log=True,
        series=series,
        marks=[Mark(at=1, label="floor")],
    )
