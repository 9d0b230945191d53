"""A measurement as a Markdown table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from multiticket.arms.facts import ARMS
from multiticket.research.bench.timed_arms import ADAPTERS, FLOOR
from multiticket.research.report.tables import markdown_table
from multiticket.ticket.atomic import replacing

AXES = {"density": "density", "width": "width of the model", "tokens": "tokens in a step"}


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row an arm, with its ratios to the arms that others are compared to."""
    arms = result["arms"]
    references = [kind for kind in ("full", *ADAPTERS, FLOOR) if any(a["kind"] == kind for a in arms)]
    names = {FLOOR: FLOOR, **{name: facts.family for name, facts in ARMS.items()}}
    predicted = FLOOR in references
    header = ["arm", "trained values", "step (quartiles)"]
    header += [f"time / {names[kind]} (95 %)" for kind in references]
    header += ["operations / floor"] * predicted + ["memory at peak", "at rest", "process"]
    rows = []
    for arm in arms:
        row = [arm["arm"], f"{arm['trained']:,}", _time(arm["time"])]
        for kind in references:
            row.append("1" if arm["kind"] == kind else _ratio(arm["over"].get(kind)))
        if predicted:
            row.append(f"{arm['predicted_over_floor']:.2f}")
        row += [decimal(arm["memory"][key]) for key in ("peak", "rest", "resident")]
        rows.append(row)
    return markdown_table(header, rows)


def sweep_table(result: Mapping[str, Any]) -> str:
    """Markdown: a row a point."""
    header = [AXES[result["sweep"]], "trained values", "ticket's step (quartiles)"]
    header += [
        "ticket / full (95 %)",
        "ticket / floor (95 %)",
        "full / floor (95 %)",
        "operations: ticket / floor",
    ]
    rows = []
    for point in result["points"]:
        ticket, full = point["ticket"], point["full"]
        ratios = [ticket["over"]["full"], ticket["over"]["floor"], full["over"]["floor"]]
        rows.append(
            [
                f"{point['value']:g}",
                f"{ticket['trained']:,}",
                _time(ticket["time"]),
                *map(_ratio, ratios),
                f"{ticket['predicted_over_floor']:.2f}",
            ]
        )
    return markdown_table(header, rows)


def caption(conditions: Mapping[str, Any]) -> str:
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


def _ratio(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['median']:.2f} ({low:.2f} to {high:.2f})"


def _time(found: Mapping[str, float]) -> str:
    middle, low, high = (1000 * found[key] for key in ("median", "quartile_1", "quartile_3"))
    digits = 0 if middle >= 100 else 1
    return f"{middle:.{digits}f} ms ({low:.{digits}f} to {high:.{digits}f})"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: each arm's time over the floor's with its 95 % interval, or how that goes over a sweep."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure = _sweep_figure(plt, result) if "sweep" in result else _arms_figure(plt, result)
        with replacing(path) as file:
            figure.savefig(file, dpi=150, format="png")
        plt.close(figure)


def _arms_figure(plt: Any, result: Mapping[str, Any]) -> Any:
    arms = [arm for arm in result["arms"] if "floor" in arm["over"]]
    figure, (times, memory) = plt.subplots(
        1, 2, figsize=(10, 1.6 + 0.42 * len(arms)), width_ratios=(3, 2), layout="constrained", sharey=True
    )
    for place, arm in enumerate(arms):
        low, high = arm["over"]["floor"]["interval"]
        colour = "#0969da" if arm["density"] is not None else "#57606a"
        times.plot([low, high], [place, place], color=colour, linewidth=2)
        times.plot(arm["over"]["floor"]["median"], place, "o", color=colour)
        times.plot(arm["predicted_over_floor"], place, "|", color="#e36209", markersize=14, markeredgewidth=2)
        memory.barh(place, arm["memory"]["peak"] / 1e6, color=colour, alpha=0.3, height=0.6)
        memory.barh(place, arm["memory"]["rest"] / 1e6, color=colour, height=0.6)
    times.plot([], [], "|", color="#e36209", markersize=14, markeredgewidth=2, label="by operations alone")
    times.axvline(1, color="#1b1f24", linewidth=1, linestyle="--", label="floor: nothing trained")
    times.set(xlabel="step time over the floor's, 95 % interval", xlim=(0.9, None))
    times.set_yticks(range(len(arms)), [arm["arm"] for arm in arms])
    times.invert_yaxis()
    times.grid(axis="x", color="#d0d7de", linewidth=0.6)
    times.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9)
    memory.set(xlabel="MB above weights: at rest (dark), at peak")
    figure.suptitle(caption(result), x=0.01, ha="left", fontsize=10)
    return figure


def _sweep_figure(plt: Any, result: Mapping[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    points = result["points"]
    values = [point["value"] for point in points]
    for name, said, colour in (("full", "full", "#57606a"), ("ticket", "ticket 1 %", "#0969da")):
        ratios = [point[name]["over"]["floor"] for point in points]
        middle = [ratio["median"] for ratio in ratios]
        errors = [
            [m - ratio["interval"][0] for m, ratio in zip(middle, ratios, strict=True)],
            [ratio["interval"][1] - m for m, ratio in zip(middle, ratios, strict=True)],
        ]
        label = name if result["sweep"] == "density" else said
        axes.errorbar(values, middle, yerr=errors, fmt="o-", color=colour, label=label, capsize=3)
        predicted = [point[name]["predicted_over_floor"] for point in points]
        axes.plot(values, predicted, ":", color=colour, label=f"{label}, by operations alone")
    axes.axhline(1, color="#1b1f24", linewidth=1, linestyle="--", label="floor: nothing trained")
    axes.set(
        xscale="log", xlabel=AXES[result["sweep"]], ylabel="step time over the floor's", ylim=(0.9, None)
    )
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    axes.legend(frameon=False)
    axes.set_title(caption(result["runs"][0]) if result["sweep"] == "density" else "", loc="left", fontsize=8)
    return figure
