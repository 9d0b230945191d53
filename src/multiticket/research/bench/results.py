"""One measurement, or a sweep of them, as plain data: what is shown and what ``--json`` writes."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from multiticket.research.bench.measure import measure
from multiticket.research.bench.operations import predict, predicted_over_floor
from multiticket.research.bench.shapes import Shape, choose_shape
from multiticket.research.bench.spread import ratio, spread
from multiticket.research.bench.timed_arms import ADAPTERS, FLOOR, choose_arms, comparable
from multiticket.research.bench.timed_process import StepSetup

REFERENCES = (FLOOR, "full", *ADAPTERS)
SWEPT: dict[str, tuple[float, ...]] = {
    "density": (1.0, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0001),
    "width": (128, 256, 512, 1024),
    "tokens": (64, 128, 256, 512, 1024),
}
"""What each sweep goes over; tokens are those of a whole step, in as many rows as ``--batch`` says."""
SWEEP_ARMS = (FLOOR, "full", "ticket")
SWEEP_DENSITY = 0.01


@dataclass(frozen=True)
class Conditions:
    """What all arms of a measurement share."""

    shape: Shape
    batch: int
    tokens: int
    dtype: str
    device: str
    threads: int
    rounds: int
    compiled: bool = False
    processes: int = 1
    """That each arm has, one after the other; the rounds are divided among them."""


def run(
    conditions: Conditions, kinds: Sequence[str], densities: Sequence[float], say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the arms and compare them. Times are in seconds, memory in bytes."""
    _check(conditions)
    shape, batch, tokens = conditions.shape, conditions.batch, conditions.tokens
    arms = choose_arms(shape, kinds, densities)
    setups = [
        StepSetup(shape, arm, batch, tokens, conditions.dtype, conditions.device, conditions.compiled)
        for arm in arms
    ]
    measured = measure(setups, conditions.rounds, conditions.threads, say, conditions.processes)
    for arm, fields in zip(arms, measured, strict=True):
        operations = predict(shape, arm, batch, tokens)
        fields["operations"] = {**asdict(operations), "total": operations.total}
        fields["predicted_over_floor"] = predicted_over_floor(shape, arm, batch, tokens)
    return {
        **asdict(conditions),
        "parameters": shape.parameters,
        "arms": with_ratios(measured, conditions.processes),
    }


def with_ratios(measured: Sequence[Mapping[str, Any]], processes: int = 1) -> list[dict[str, Any]]:
    """Each arm with its spread (``time``) and its ratios (``over``) to those of `REFERENCES` that were measured.

    Over LoRA and SHiRA only where both train the same number of values, within 2 %.
    """
    references = {fields["kind"]: fields for fields in measured if fields["kind"] in REFERENCES}
    return [
        {
            **fields,
            "time": spread(fields["seconds"]),
            "over": {
                kind: ratio(fields["seconds"], reference["seconds"], processes)
                for kind, reference in references.items()
                if fields is not reference
                and (kind not in ADAPTERS or comparable(fields["trained"], reference["trained"]))
            },
        }
        for fields in measured
    ]


def sweep(
    name: str, conditions: Conditions, values: Sequence[float] | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """How a 1 % step's time over the floor and over full training changes with density, width or tokens.

    Returns:
        ``sweep``, ``points`` (each with ``value``, ``over`` and ``predicted_over_floor`` of the ticket and of full
        training) and ``runs``, the measurements behind them. All densities are one measurement; each width or
        number of tokens is one.

    Raises:
        ValueError: no such sweep, or a value that cannot be measured.
    """
    if name not in SWEPT:
        raise ValueError(f"There is no sweep over {name!r}; give {', '.join(SWEPT)}.")
    values = list(values or SWEPT[name])
    if name == "density":
        runs = [run(conditions, SWEEP_ARMS, values, say)]
        tickets = [arm for arm in runs[0]["arms"] if arm["density"] is not None]
        points = [_point(arm["density"], arm, runs[0]) for arm in tickets]
        return {"sweep": name, "points": points, "runs": runs}
    swept = [_changed(conditions, name, value) for value in values]
    for changed in swept:
        _check(changed)
    runs = []
    for value, changed in zip(values, swept, strict=True):
        say(f"{name} {value:g}")
        runs.append(run(changed, SWEEP_ARMS, [SWEEP_DENSITY], say))
    points = [
        _point(value, _of_kind(measured, "ticket"), measured)
        for value, measured in zip(values, runs, strict=True)
    ]
    return {"sweep": name, "points": points, "runs": runs}


def _changed(conditions: Conditions, name: str, value: float) -> Conditions:
    if value != int(value):
        raise ValueError(f"A sweep over {name} takes whole numbers, not {value:g}.")
    value = int(value)
    if name == "width":
        shape = conditions.shape
        return replace(
            conditions,
            shape=choose_shape("36M", layers=shape.layers, width=value, vocabulary=shape.vocabulary),
        )
    if value % conditions.batch:
        raise ValueError(
            f"{value} tokens do not divide into --batch {conditions.batch} rows; choose another batch."
        )
    return replace(conditions, tokens=value // conditions.batch)


def _point(value: float, arm: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("trained", "time", "over", "predicted_over_floor", "memory")
    sides = (("ticket", arm), ("full", _of_kind(measured, "full")))
    return {"value": value, **{name: {key: side[key] for key in shown} for name, side in sides}}


def _of_kind(measured: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return next(arm for arm in measured["arms"] if arm["kind"] == kind)


def _check(conditions: Conditions) -> None:
    for name in ("batch", "rounds", "threads", "processes"):
        if getattr(conditions, name) < 1:
            raise ValueError(f"--{name} must be at least 1, but is {getattr(conditions, name)}.")
    if conditions.rounds % conditions.processes:
        raise ValueError(
            f"{conditions.rounds} --rounds do not divide among {conditions.processes} --processes; give a multiple."
        )
    if conditions.tokens < 2:
        raise ValueError(f"A row needs at least 2 tokens, but has {conditions.tokens}.")


def machine(device: str) -> dict[str, Any]:
    """Where and with what it was measured, and by which command."""
    import torch

    found = {
        "command": " ".join(["multiticket", *sys.argv[1:]]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
    }
    return {**found, "versions": {name: version(name) for name in ("multiticket", "torch", "transformers")}}


def _processor() -> str:
    with (
        open("/proc/cpuinfo", encoding="utf-8")
        if os.path.exists("/proc/cpuinfo")
        else open(os.devnull) as file
    ):
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()
