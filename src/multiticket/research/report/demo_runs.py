"""The demonstration: full training beside two random 1 % tickets, on a shipped base, in minutes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiticket import config
from multiticket.config import RunConfig
from multiticket.research.report.tables import arm_name
from multiticket.runs.files import write_json
from multiticket.runs.folder import RunFolder, read_metrics

SEEDS = (0, 1)
PICTURE = "curves.png"


@dataclass(frozen=True)
class Revert:
    """What applying a ticket changed, and whether reverting it gave the base back."""

    ticket: Path
    base: str
    """SHA-256 of every weight's bytes before."""
    changed: int
    """Weights whose bits differ while the ticket is applied."""
    trained: str
    """The hash while it is applied."""
    reverted: str
    """The hash afterwards."""


def demo_runs(recipes: Path, output: Path, steps: int | None = None) -> list[tuple[RunConfig, Path]]:
    """The settings and folder of each run: the full arm, and a ticket for each seed.

    Args:
        steps: how long each run is; None: as the recipes have it.

    Raises:
        ValueError: if the recipes are missing or wrong, or a folder holds another run.
    """
    if not recipes.is_dir():
        raise ValueError(
            f"There is no folder {recipes}: run the demo in a clone of the repository, or give --recipes."
        )
    length = {} if steps is None else {"steps": steps}
    runs = [(config.load(recipes / "arithmetic-full.yaml", length), output / "full")]
    for seed in SEEDS:
        ticket = config.load(recipes / "arithmetic-ticket.yaml", {"seed": seed, **length})
        runs.append((ticket, output / f"ticket-seed{seed}"))
    for wanted, path in runs:
        folder = RunFolder(path)
        if folder.holds_a_run() and folder.read_config() != wanted:
            raise ValueError(
                f"{path} holds a run with other settings: remove it, or choose another --output."
            )
    return runs


def is_finished(path: Path) -> bool:
    return RunFolder(path).read_result() is not None


def perform(run: RunConfig, path: Path) -> dict[str, Any]:
    """The result of one run: read where it is finished, else trained (on from where it was interrupted)."""
    folder = RunFolder(path)
    finished = folder.read_result()
    if finished is not None:
        return finished
    from multiticket.train.run import run_training

    return run_training(run, path, resume=folder.holds_a_run())


def masks_overlap(results: list[dict[str, Any]]) -> Any:
    """The :class:`multiticket.mask.Overlap` of the first two tickets' masks, rebuilt from their rules."""
    import multiticket as mt
    from multiticket.models import load_model

    model, _ = load_model(results[0]["model"])
    first, second = (
        mt.Mask.random(model, density=r["density"], seed=r["seed"], part=r["part"]) for r in results[:2]
    )
    return mt.overlap(first, second)


def prove_revert(model_name: str, dtype: str, ticket: Path) -> Revert:
    """Apply a ticket to the base and revert it, comparing every weight bit by bit."""
    import multiticket as mt
    from multiticket.models import load_model

    model, _ = load_model(model_name, dtype)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    base = weights_hash(model)
    with mt.Ticket.load(ticket).applied(model):
        trained = weights_hash(model)
        changed = sum(int((weight != before[name]).sum()) for name, weight in model.named_parameters())
    return Revert(ticket, base, changed, trained, weights_hash(model))


def weights_hash(model: Any) -> str:
    """SHA-256 over the names and bytes of all parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def draw(results: list[dict[str, Any]], folders: list[Path], picture: Path) -> None:
    """The reward curves of all runs."""
    from multiticket.research.report.curves import curves
    from multiticket.research.report.figures import write_figures

    runs = [
        (arm_name(result, short=True), read_metrics(RunFolder(folder).metrics), result)
        for result, folder in zip(results, folders, strict=True)
    ]
    write_figures(curves(runs), picture)


def save_summary(path: Path, results: list[dict[str, Any]], overlap: Any, reverts: list[Revert]) -> None:
    """All numbers of the demonstration as JSON."""
    write_json(
        path,
        {
            "runs": results,
            "overlap": {
                "jaccard": overlap.jaccard,
                "expected": overlap.expected,
                "intersection": overlap.intersection,
                "z": overlap.z,
            },
            "reverts": [{**vars(revert), "ticket": str(revert.ticket)} for revert in reverts],
        },
    )
