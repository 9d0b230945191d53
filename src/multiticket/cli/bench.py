"""``multiticket bench``: what a training step costs, measured on this machine."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from multiticket.cli.outputs import Command, Json, give, refuse_picture, refuse_unwritable
from multiticket.research.bench.shapes import SHAPES, choose_shape
from multiticket.research.bench.timed_arms import ADAPTERS, BY_PATH, DENSITIES, KINDS

DTYPES = ("float32", "bfloat16", "float16")
ROUNDS, SWEEP_ROUNDS, DISPATCH_ROUNDS = 15, 7, 60
OF_DISPATCH = {"dispatch", "rounds", "compiled", "json"}
"""The options that go with ``--dispatch``."""


def register(app: typer.Typer) -> None:
    app.command("bench", cls=Command)(bench)


def bench(
    context: typer.Context,
    dispatch: Annotated[
        bool,
        typer.Option(
            "--dispatch",
            help="Measure Python's share of a step instead: calls and time, on one CPU thread.",
        ),
    ] = False,
    sweep: Annotated[
        str | None, typer.Option(help="Measure time over density, width or tokens instead.")
    ] = None,
    values: Annotated[str | None, typer.Option(help="The sweep's values, separated by commas.")] = None,
    shape: Annotated[str, typer.Option(help=f"The model's shape: {', '.join(SHAPES)}.")] = "36M",
    layers: Annotated[int | None, typer.Option(help="Replaces the shape's.")] = None,
    width: Annotated[int | None, typer.Option(help="Replaces the shape's; a multiple of 64.")] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Replaces the shape's.")] = None,
    arms: Annotated[str, typer.Option(help=f"Arms to compare; also {', '.join(BY_PATH)}.")] = ",".join(KINDS),
    densities: Annotated[str, typer.Option(help="Densities of the tickets.")] = ",".join(map(str, DENSITIES)),
    batch: Annotated[int, typer.Option(help="Sequences in a step.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens in a sequence.")] = 256,
    rounds: Annotated[
        int | None,
        typer.Option(
            help=f"Steps of each arm; default {ROUNDS}, in a sweep {SWEEP_ROUNDS}, with --dispatch {DISPATCH_ROUNDS}."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="The weights' dtype; default: float32 on a CPU, bfloat16 on a GPU.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each process; default: all cores.")] = None,
    processes: Annotated[
        int, typer.Option(help="Processes of each arm, one after another; they divide the rounds.")
    ] = 1,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            show_default=False,
            help="Compile every arm with torch.compile; default: no. With --dispatch: measure full training and the "
            "ticket with compiled layers too; default: yes, about a minute the first time.",
        ),
    ] = None,
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a figure to this file: .svg, .png or .pdf.")] = None,
) -> None:
    """Measure step time and peak memory of full training, tickets, LoRA and SHiRA, and of a step that trains nothing.

    Each arm runs in its own process with the same random model and tokens. The arms step in turn, in random order.
    Prints a Markdown table.
    """
    if dispatch:
        _dispatch(context, DISPATCH_ROUNDS if rounds is None else rounds, compiled is not False, json)
        return
    chosen = [arm.strip() for arm in arms.split(",")]
    dense = _numbers(densities, "densities")
    measured_shape = choose_shape(shape, layers, width, vocabulary)
    _refuse_before_measuring(json, plot, {} if sweep else {"peft": bool({*ADAPTERS} & {*chosen})})
    if values is not None and sweep is None:
        raise ValueError("--values belongs to a --sweep; give --densities for tickets of several densities.")

    import torch

    from multiticket.research.bench import results, step_cost
    from multiticket.research.report.tables import markdown

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"There is no device {device!r} here to measure on; give --device cpu.")
    dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"There is no dtype {dtype!r} to measure in; give {', '.join(DTYPES)}.")
    conditions = results.Conditions(
        shape=measured_shape,
        batch=batch,
        tokens=tokens,
        dtype=dtype,
        device=device,
        threads=_cores() if threads is None else threads,
        rounds=(SWEEP_ROUNDS if sweep else ROUNDS) if rounds is None else rounds,
        compiled=bool(compiled),
        processes=processes,
    )
    if sweep:
        swept = None if values is None else _numbers(values, "values")
        result = results.sweep(sweep, conditions, swept, _say)
        caption, table = step_cost.caption(result["runs"][0]), step_cost.sweep_table(result)
    else:
        result = results.run(conditions, chosen, dense, _say)
        caption, table = step_cost.caption(result), step_cost.table(result)
    _say("")
    first = " (first point)" if sweep in ("width", "tokens") else ""
    give({**results.machine(device), **result}, json, lambda: print(f"{caption}{first}\n\n{markdown(table)}"))
    if plot:
        from multiticket.research.report.figures import write_figures

        write_figures(step_cost.figures(result), plot)


def _dispatch(context: typer.Context, rounds: int, compiled: bool, json: str | None) -> None:
    given = [
        name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    others = [name for name in given if name not in OF_DISPATCH]
    if others:
        raise ValueError(f"--dispatch measures its own model; remove --{', --'.join(others)}.")
    _refuse_before_measuring(json, None, {"peft": True})

    from multiticket.research.bench import dispatch, results
    from multiticket.research.report.tables import markdown

    result = {**results.machine("cpu"), **dispatch.run(rounds, compiled, _say)}
    _say("")
    give(result, json, lambda: print(f"{dispatch.caption(result)}\n\n{markdown(dispatch.table(result))}"))


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--{option} takes numbers separated by commas, not {text!r}.") from None


def _refuse_before_measuring(json: str | None, plot: Path | None, extras: dict[str, bool]) -> None:
    """What would fail after minutes of measuring fails now."""
    refuse_unwritable(json, plot)
    refuse_picture(plot)
    needed = {"transformers": "train"}
    needed.update({name: "peft" for name, wanted in extras.items() if wanted})
    for name, extra in needed.items():
        if importlib.util.find_spec(name) is None:
            hint = f", or remove {' and '.join(ADAPTERS)} from --arms" if name == "peft" else ""
            raise ValueError(f"This needs {name}: pip install 'multiticket[{extra}]'{hint}.")


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(line: str) -> None:
    """Progress on standard error; on a terminal each line replaces the one before."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr, flush=True)
