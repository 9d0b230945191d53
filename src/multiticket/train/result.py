"""What ``result.json`` says of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from multiticket.evaluate.validation import best_step
from multiticket.runs.versions import versions
from multiticket.train.setup import Setup


def result_of(
    run: Setup, scores: dict[str, Any], trained: dict[str, Any], started: float, peak: dict[str, int | None]
) -> dict[str, Any]:
    """Settings, scores, files and costs.

    Args:
        scores: of what the run started from and of what it kept (`evaluate_kept`).
        trained: what its training came to (``trained.json``).
        started: when this process began with the run, by ``time.monotonic``.
        peak: bytes, the most that one process has held: in the whole ``run``, and in its last ``evaluation``.
    """
    config = run.config
    kept = run.folder.path / trained["file"]
    return {
        **{name: getattr(config, name) for name in ("task", "model", "arm", "density", "seed", "part")},
        **{name: getattr(config, name) for name in ("training_seed", "steps", "dtype")},
        "learning_rate": trained["learning_rate"],
        "learning_rate_asked": config.learning_rate,
        **run.prepared.about(config, run.numel),
        "nnz": run.prepared.nnz,
        "numel": run.numel,
        "eval": scores,
        "best_step": best_step(run.folder.evaluations.read()),
        "no_signal": trained.get("no_signal"),
        "failures": trained.get("failures"),
        "stopped": trained["stopped"],
        "file": kept.name,
        "file_bytes": bytes_of(kept),
        "train_s": round(trained["train_s"], 3),
        "wall_s": round(trained["earlier_s"] + time.monotonic() - started, 3),
        "peak_memory_bytes": peak["run"],
        "evaluation_peak_bytes": peak["evaluation"],
        "processes": run.ranks.size,
        "strategy": run.strategy,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions(run.arm.packages),
    }


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
