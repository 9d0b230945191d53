"""Measurements of ``multiticket bench`` as a section of a study's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multiticket.research.bench.show import caption
from multiticket.research.study.page_section import Entry, Figure, Mark, PageSection, Series, Table, Verdict
from multiticket.runs.folder import read_json

LITTLE = 1.15
"""Over the floor: what was aimed at before it was measured."""
CLAIMED = "ticket 1 %"
"""The arm that the claim is about."""
REFERENCES = {"floor": "floor", "full": "full", "lora": "LoRA", "shira": "SHiRA"}


def read_bench(path: Path) -> dict[str, Any]:
    """What ``multiticket bench --json`` wrote, with the time of several arms.

    Raises:
        ValueError: it is something else, such as a sweep.
    """
    found = read_json(path)
    if not isinstance(found.get("arms"), list) or not all("over" in arm for arm in found["arms"]):
        raise ValueError(f"{path} does not hold the arms that multiticket bench --json writes.")
    if ratio_of(found, "floor") is None:
        raise ValueError(f"{path} has no {CLAIMED} beside a floor: measure both.")
    return found


def step_cost_section(measured: Sequence[Mapping[str, Any]], command: str) -> PageSection:
    """Whether a 1 % step is within `LITTLE` of the floor, wherever it was measured.

    Args:
        measured: each from :func:`read_bench`; the first one's arms come first.
    """
    names = names_of(measured)
    return PageSection(
        name="cost",
        heading="A sparse step costs little more than the forward pass and the input gradient.",
        verdict=verdict([ratio_of(one, "floor") for one in measured]),
        answer=" ".join(_answer(name, one) for name, one in zip(names, measured, strict=True)),
        n="; ".join(f"{one['rounds']} rounds on {name}" for name, one in zip(names, measured, strict=True)),
        command=command,
        notes=[
            f"Little is a factor of {LITTLE:g}, set before anything was measured; reproduced means that the whole "
            "interval is below it everywhere, not reproduced that it is above it somewhere.",
            "The floor is forward pass and input gradient with nothing trained. Arms take one step each in turn, in "
            "random order; a ratio is the median over rounds with the bootstrap's 95 % interval.",
            "On a shared machine the ratio depends on the neighbours: docs/results/step_cost.md has several runs.",
            *_missing(measured),
        ],
        figures=[
            _figure(name, one, kind)
            for name, one in zip(names, measured, strict=True)
            for kind in _kinds(one)
        ],
        tables=[_table(name, one) for name, one in zip(names, measured, strict=True)],
        numbers={
            "measured": [
                {
                    **{key: one[key] for key in ("command", "shape", "batch", "tokens", "dtype", "device")},
                    **{
                        key: one.get(key)
                        for key in ("processor", "cores", "gpu", "threads", "rounds", "compiled", "versions")
                    },
                    "over": {arm["arm"]: arm["over"] for arm in one["arms"]},
                }
                for one in measured
            ]
        },
    )


def place(measured: Mapping[str, Any]) -> str:
    """``CPU, float32, 2 threads`` or the name of a GPU."""
    if measured["device"] == "cuda":
        return f"{measured.get('gpu') or 'GPU'}, {measured['dtype']}"
    return f"CPU, {measured['dtype']}, {measured['threads']} threads"


def names_of(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where each was measured; of several at one place, what too."""
    places = [place(one) for one in measured]
    return [
        name if places.count(name) == 1 else f"{name}, {_what(one)}"
        for name, one in zip(places, measured, strict=True)
    ]


def _what(measured: Mapping[str, Any]) -> str:
    compiled = ", compiled" if measured.get("compiled") else ""
    size = f"{measured['parameters'] / 1e6:.0f} M"
    return f"{size}, {measured['batch']} x {measured['tokens']} tokens{compiled}"


def ratio_of(measured: Mapping[str, Any], over: str) -> Mapping[str, Any] | None:
    """Median and interval of the claimed arm's time over a reference's; None where either was not measured."""
    found = [arm["over"].get(over) for arm in measured["arms"] if arm["arm"] == CLAIMED]
    return found[0] if found else None


def verdict(ratios: Sequence[Mapping[str, Any] | None]) -> Verdict:
    """Of the ratios to the floor, one a place."""
    intervals = [ratio["interval"] for ratio in ratios if ratio is not None]
    if any(low > LITTLE for low, _ in intervals):
        return "not reproduced"
    return "reproduced" if intervals and all(high <= LITTLE for _, high in intervals) else "not decided"


def _answer(name: str, measured: Mapping[str, Any]) -> str:
    floor, full = ratio_of(measured, "floor"), ratio_of(measured, "full")
    assert floor is not None
    dense = next((arm["over"].get("floor") for arm in measured["arms"] if arm["kind"] == "full"), None)
    said = f"{name}: a {CLAIMED} step takes {_ratio(floor)} of the floor's time"
    said += f", where full training takes {_ratio(dense)}" if dense else ""
    return f"{said}; of full training's, {_ratio(full)}." if full else f"{said}."


def _kinds(measured: Mapping[str, Any]) -> list[str]:
    return [kind for kind in REFERENCES if any(arm["kind"] == kind for arm in measured["arms"])][:2]


def _figure(name: str, measured: Mapping[str, Any], over: str) -> Figure:
    arms = [arm for arm in measured["arms"] if over in arm["over"]]
    ratios = [arm["over"][over] for arm in arms]
    said = "; ".join(f"{arm['arm']} {_ratio(ratio)}" for arm, ratio in zip(arms, ratios, strict=True))
    marks = [Mark(at=1, label=REFERENCES[over])]
    return Figure(
        kind="intervals",
        caption=f"Time of a step over that of {_of(over)}; {name}. {caption(measured)}.",
        alternative=f"Ratios of times with 95 % intervals: {said}.",
        x_label=f"time over that of {_of(over)}",
        series=[
            Series.with_ends(
                name,
                [arm["arm"] for arm in arms],
                [ratio["median"] for ratio in ratios],
                [ratio["interval"] for ratio in ratios],
            )
        ],
        marks=[*marks, Mark(at=LITTLE, label=f"little, {LITTLE:g}")] if over == "floor" else marks,
    )


def _table(name: str, measured: Mapping[str, Any]) -> Table:
    kinds = [kind for kind in REFERENCES if any(arm["kind"] == kind for arm in measured["arms"])]
    rows: list[list[Entry]] = []
    for arm in measured["arms"]:
        ratios = [arm["over"].get(kind) for kind in kinds]
        over: list[Entry] = [
            "1" if arm["kind"] == kind else None if ratio is None else _ratio(ratio)
            for kind, ratio in zip(kinds, ratios, strict=True)
        ]
        milliseconds, peak = 1000 * arm["time"]["median"], arm["memory"]["peak"] / 1e6
        rows.append([arm["arm"], arm["trained"], round(milliseconds, 1), *over, round(peak, 1)])
    return Table(
        caption=f"{name}: {caption(measured)}. Ratios of times within a round, with 95 % intervals",
        columns=[
            "arm",
            "trained",
            "step, ms",
            *(f"/ {REFERENCES[kind]}" for kind in kinds),
            "memory at peak, MB",
        ],
        rows=rows,
    )


def _missing(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    devices = {one["device"] for one in measured}
    return [] if "cuda" in devices else ["Nothing was measured on a GPU."]


def _of(over: str) -> str:
    return {"floor": "the floor", "full": "full training"}.get(over, REFERENCES[over])


def _ratio(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['median']:.2f} ({low:.2f} to {high:.2f})"
