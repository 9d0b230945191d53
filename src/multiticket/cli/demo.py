"""``multiticket demo``: full training beside two random 1 % tickets, from nothing to a picture."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from multiticket.cli.outputs import STANDARD_OUTPUT, Command, Json, give, refuse_unwritable
from multiticket.runs.folder import read_json
from multiticket.runs.ranks import refuse_several

NUMBERS = "demo.json"
REPOSITORY = Path(__file__).resolve().parents[3]


def register(app: typer.Typer) -> None:
    app.command("demo", cls=Command)(demo)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the runs and the picture.")] = Path("demo"),
    recipes: Annotated[
        Path | None, typer.Option(help="Folder with the recipes; default: the repository's.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of each run; default: the recipes'.")
    ] = None,
    json: Json = None,
) -> None:
    """Train everything and two random 1 % tickets on arithmetic, compare them, and apply and revert each ticket."""
    refuse_several("demo")
    refuse_unwritable(json)
    with redirect_stdout(sys.stderr) if json == STANDARD_OUTPUT else nullcontext():
        exact = _demonstrate(output, recipes, steps)
    give(read_json(output / NUMBERS), json, lambda: None)
    if not exact:
        raise typer.Exit(1)


def _demonstrate(output: Path, recipes: Path | None, steps: int | None) -> bool:
    """Do it, saying what comes of it; whether every revert was exact."""
    from multiticket.research.report import demo_runs as parts
    from multiticket.research.report.tables import print_runs, wide_console

    started = time.monotonic()
    say = wide_console().print
    runs = parts.demo_runs(recipes or REPOSITORY / "recipes", output, steps)
    missing = [folder.name for _, folder in runs if not parts.is_finished(folder)]
    if missing:
        say(f"Training {', '.join(missing)}, in some minutes; torch and TRL are imported first.")
    results = [parts.perform(run, folder) for run, folder in runs]
    folders = [folder for _, folder in runs]

    print_runs(
        results,
        f"{results[0]['model']} on {results[0]['task']}: accuracy at temperature 1, with 95 % intervals",
    )
    overlap = parts.masks_overlap(results[1:])
    say(
        f"Masks: the two tickets share {overlap.intersection:,} of {overlap.first:,} positions, Jaccard "
        f"{overlap.jaccard:.5f}; independent masks share {overlap.expected_intersection:,.0f}, Jaccard "
        f"{overlap.expected:.5f} ({overlap.z:+.1f} standard deviations)."
    )
    reverts = []
    for result, folder in zip(results[1:], folders[1:], strict=True):
        revert = parts.prove_revert(result["model"], result["dtype"], folder / result["file"])
        reverts.append(revert)
        same = "the same bits" if revert.reverted == revert.base else "DIFFERENT BITS"
        say(
            f"Revert: base {revert.base[:12]}, with {folder.name} {revert.trained[:12]} ({revert.changed:,} weights "
            f"changed), reverted {revert.reverted[:12]}: {same}."
        )
    parts.draw(results, folders, output / parts.PICTURE)
    parts.save_summary(output / NUMBERS, results, overlap, reverts)
    say(f"\nPicture: {output / parts.PICTURE}    numbers: {output / NUMBERS}")
    for result, folder in zip(results, folders, strict=True):
        say(f"{parts.arm_name(result)}: {folder}/{result['file']}    log: {folder}/metrics.jsonl")
    say(f"tensorboard --logdir {output}    done in {time.monotonic() - started:.0f} s")
    return all(revert.reverted == revert.base and revert.changed for revert in reverts)
