"""What ``multiticket theory predict`` measures: does what a mask keeps before training tell what training comes to?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from multiticket import arms
from multiticket.config import RunConfig
from multiticket.research.stats.rank_correlation import correlations
from multiticket.research.theory.fisher import Sampling, comparison, measured
from multiticket.research.theory.gram import grams
from multiticket.runs.folder import RunFolder

PREDICTORS = ("energy", "mean_energy", "frobenius", "operator", "alignment", "overlap", "predicted_frobenius")
"""What is known of a mask before training (`subspace.Kept`)."""


def prediction(paths: Sequence[Path], sampling: Sampling, rank: int) -> dict[str, Any]:
    """Rank correlations of every predictor with pass@1 after training, over finished runs, as plain JSON.

    Args:
        sampling: how gradients are sampled; its model and task are replaced by those of the runs.

    Raises:
        ValueError: a run is not finished, has no mask (LoRA) or another base or task; or they are too few.
    """
    runs = [_finished(path) for path in paths]
    first, config = paths[0], runs[0][0]
    for path, (other, _) in zip(paths, runs, strict=True):
        if (other.model, other.task) != (config.model, config.task):
            raise ValueError(
                f"{first} and {path} have different models or tasks: compare runs of one of each."
            )
    if len(runs) < 4:
        raise ValueError(f"A rank correlation needs at least four finished runs; there are {len(runs)}.")
    found = measured(replace(sampling, model=config.model, task=config.task))
    masks = [arms.get(config.arm).mask(found.model, found.tokenizer, config) for config, _ in runs]
    result = grams(found.gradients, masks)
    rows = []
    for path, (settings, after), mask, masked in zip(paths, runs, masks, result.masked, strict=True):
        row = {"run": str(path), "mask": mask_name(settings), "density": settings.density, "nnz": mask.nnz}
        row |= {"learning_rate": settings.learning_rate, "steps": settings.steps, "after": after}
        rows.append({**row, **comparison(result, masked, mask, settings.density, rank)})
    values = {name: [row[name] for row in rows] for name in PREDICTORS}
    values["density"] = [row["density"] for row in rows]
    return {
        **found.about(),
        "rank": rank,
        "runs": rows,
        "correlations": [asdict(one) for one in correlations(values, [row["after"] for row in rows])],
    }


def _finished(path: Path) -> tuple[RunConfig, float]:
    """Settings and pass@1 after training. Raises ValueError where a run says neither, or has no mask on its base."""
    run = RunFolder(path)
    if not run.config.exists():
        raise ValueError(f"{path} holds no run: give a run's folder, which contains config.json.")
    config, result = run.read_config(), run.read_result()
    if result is None:
        raise ValueError(f"The run in {path} is not finished, so there is no accuracy to predict: omit it.")
    if not config.facts.has_mask:
        raise ValueError(f"The run in {path} trained an adapter, which has no mask: omit it.")
    if config.from_ticket is not None:
        raise ValueError(f"The run in {path} started from a ticket and not from the base: omit it.")
    return config, float(result["eval"]["after"]["pass@1"])


def mask_name(config: RunConfig) -> str:
    """``full``, or the method with its options, such as ``layers last``."""
    if config.facts.trains_everything:
        return config.arm
    return " ".join([config.method, *map(str, config.mask_options.values())])
