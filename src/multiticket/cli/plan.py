"""``multiticket plan``: what training will cost in memory, before anything is downloaded or trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from multiticket.arms.facts import ARMS
from multiticket.cli.outputs import Command, Json, give, one_model, refuse_unwritable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multiticket.plan.gpus import GpuPlan
    from multiticket.plan.memory import ArmPlan, Plan

ROWS = (
    ("weights", "weights"),
    ("buffers", "buffers"),
    ("values", "values, adapters or master weights"),
    ("gradients", "gradients"),
    ("moments", "moments"),
    ("positions", "positions"),
    ("bookkeeping", "bookkeeping"),
    ("state", "model state"),
    ("activations", "activations"),
    ("recomputed", "one layer recomputed"),
    ("logits_fused", "logits, fused head"),
    ("logits_naive", "(logits, naive head)"),
    ("cache", "generation cache"),
    ("drawn", "logits of drawn tokens"),
    ("libraries", "libraries"),
    ("holes", "holes in the heap"),
    ("training", "peak in training"),
    ("generation", "peak in generation"),
)
"""What the table shows of an arm, and what it is called there."""
SHARED_ROWS = (
    ("state", "model state"),
    ("training", "peak in training"),
    ("generation", "peak in generation"),
    ("sent", "sent in a step"),
)
STRATEGIES = {"ddp": "DDP", "fsdp2": "FSDP2"}
SUMS = frozenset({"state", "training", "generation"})


def register(app: typer.Typer) -> None:
    app.command("plan", cls=Command)(plan)


def plan(
    model_argument: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="A shipped base, a model's folder, a GGUF file, or a hub name."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model; the same as MODEL.")] = None,
    density: Annotated[float, typer.Option(help="Density of the ticket.")] = 0.01,
    tokens: Annotated[int, typer.Option(help="Tokens of a prompt and its completion.")] = 1024,
    batch: Annotated[int, typer.Option(help="Sequences in one forward and backward pass.")] = 4,
    dtype: Annotated[
        str, typer.Option(help="The weights' dtype: bfloat16, float16 or float32.")
    ] = "bfloat16",
    arms: Annotated[str, typer.Option(help="Ways of training, separated by commas.")] = ",".join(ARMS),
    lora_rank: Annotated[
        int | None, typer.Option(help="An adapter's rank; default: as many trained values as the ticket.")
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Say whether it fits a GPU of this size, such as 24GiB.")
    ] = None,
    gpus: Annotated[
        int, typer.Option(min=1, help="GPUs that share a run; batch and completions are those of each.")
    ] = 1,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute each layer in the backward pass.")
    ] = False,
    padded: Annotated[
        bool, typer.Option("--padded", help="Count padded rows, for which attention saves its mask and more.")
    ] = False,
    completions: Annotated[
        int | None, typer.Option(help="Sequences generated at once; default: the batch.")
    ] = None,
    quantised: Annotated[
        str | None, typer.Option(help="Count a base that bitsandbytes quantised: nf4 or int8.")
    ] = None,
    device: Annotated[str, typer.Option(help="The device to train on: cuda or cpu.")] = "cuda",
    json: Json = None,
) -> None:
    """Estimate the memory of full, LoRA and ticket training, by component, from the model's configuration alone."""
    from multiticket.plan import memory as planning
    from multiticket.plan.fitting import in_words, what_fits
    from multiticket.plan.gpus import on_gpus
    from multiticket.plan.workload import Workload

    model = one_model(model_argument, model)
    if model is None:
        raise ValueError("Give a model: multiticket plan MODEL.")
    refuse_unwritable(json)
    size = None if gpu_memory is None else parse_memory(gpu_memory)
    workload = Workload(
        model=model,
        density=density,
        tokens=tokens,
        batch=batch,
        dtype=dtype,
        arms=tuple(arm.strip() for arm in arms.split(",")),
        lora_rank=lora_rank,
        gradient_checkpointing=gradient_checkpointing,
        padded=padded,
        completions=completions,
        device=device,
        quantised=quantised,
    )
    planned = planning.plan(workload)
    shared = [on_gpus(planned, arm, gpus) if gpus > 1 else () for arm in planned.arms]
    told = planned.to_json(size)
    for arm, found in zip(told["arms"], shared, strict=True):
        arm["on_gpus"] = [each.to_json(size) for each in found]
    notes = []
    for arm, one in zip(told["arms"], planned.arms, strict=True):
        fits = size is None or one.fits(size)
        ways = [] if size is None or fits else what_fits(replace(workload, arms=(one.arm,)), size)
        arm["fits_with"] = [way._asdict() for way in ways]
        if not fits:
            notes.append(f"{one.arm} fits with {in_words(ways, '--batch', '--gradient-checkpointing')}.")
    give({**told, "gpus": gpus}, json, lambda: _print(planned, size, gpus, shared, notes))


def _print(
    plan: Plan, gpu_memory: int | None, gpus: int, shared: Sequence[Sequence[GpuPlan]], notes: Sequence[str]
) -> None:
    from rich import box
    from rich.table import Table

    from multiticket.plan.gpus import ASSUMPTIONS as ON_SEVERAL
    from multiticket.plan.memory import ASSUMPTIONS
    from multiticket.research.report.tables import wide_console

    of = plan.workload
    details = [f"{of.batch} x {of.tokens} tokens", of.dtype, f"{of.at_once} completions at once"]
    details += [f"quantised to {of.quantised}"] if of.quantised else []
    details += ["padded rows"] * of.padded + ["gradient checkpointing"] * of.gradient_checkpointing
    title = f"{of.model}: {plan.parameters:,} parameters, {', '.join(details)}"
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column("memory")
    for arm in plan.arms:
        table.add_column(ARMS[arm.arm].title(of.density, arm.lora_rank), justify="right")
    table.add_row("trained values", *(f"{arm.trained:,}" for arm in plan.arms), end_section=True)
    for name, label in ROWS:
        amounts = [getattr(arm, name) for arm in plan.arms]
        if any(amounts):
            table.add_row(label, *map(binary_size, amounts), style="bold" if name in SUMS else None)
        if name == "state":
            rates = (f"{amount / plan.parameters:.3f}" for amount in amounts)
            table.add_row("  bytes a parameter", *rates, end_section=True)
    if gpu_memory is not None:
        table.add_row(f"fits {binary_size(gpu_memory)}", *_verdicts(plan.arms, gpu_memory), style="bold")
    for by_arm in zip(*shared, strict=True):
        table.add_section()
        table.add_row(f"on each of {gpus}, {STRATEGIES[by_arm[0].strategy]}:")
        for name, label in SHARED_ROWS:
            sizes = [binary_size(getattr(one, name)) for one in by_arm]
            table.add_row(f"  {label}", *sizes, style="bold" if name in SUMS else None)
        if gpu_memory is not None:
            table.add_row(f"  fits {binary_size(gpu_memory)}", *_verdicts(by_arm, gpu_memory), style="bold")
    console = wide_console()
    console.print(table)
    for note in notes:
        console.print(note)
    for assumption in (*ASSUMPTIONS, *(ON_SEVERAL if gpus > 1 else ())):
        console.print(f"- {assumption}", style="dim")


def _verdicts(plans: Sequence[ArmPlan | GpuPlan], gpu_memory: int) -> list[str]:
    return ["yes" if one.fits(gpu_memory) else "no" for one in plans]


def binary_size(count: int) -> str:
    """Bytes in powers of 1024, the units that GPUs' memory is given in."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"


def parse_memory(text: str) -> int:
    """Bytes in ``24GiB``, ``80 GB`` or ``512MiB``; a plain number is GiB, as GPUs are sold.

    Raises:
        ValueError: it is not a size.
    """
    units = {"": 2**30, "GIB": 2**30, "GB": 10**9, "MIB": 2**20, "MB": 10**6, "TIB": 2**40, "TB": 10**12}
    number = text.strip().rstrip("GgMmTtIiBb ").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"{text!r} is not an amount of memory; write 24GiB or 80GB, for example.")
    return size
