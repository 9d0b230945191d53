"""What ``result.json`` says of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from multiticket.evaluate.validation import best_step
from multiticket.runs.versions import versions
from multiticket.train.setup import Setup

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def result_of(
    run: Setup, scores: dict[str, Any], trained: dict[str, Any], started: float, peak: int
) -> dict[str, Any]:
    """Settings, scores, files and costs.

    Args:
        scores: of what the run started from and of what it kept (`evaluate_kept`).
        trained: what its training came to (``trained.json``).
        started: when this process began with the run, by ``time.monotonic``.
        peak: bytes, the most that one process has held.
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
        "peak_memory_bytes": peak,
        "processes": run.ranks.size,
        "strategy": run.strategy,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions(run.arm.packages),
    }


def forget_peak_memory() -> None:
    """Let `peak_memory` be that of what comes now: a process may do one run after another."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # not on Linux, or not allowed
        CLEAR.write_text("5")  # proc(5): the peak resident set becomes the present one


def peak_memory() -> int:
    """Bytes: the largest the process (on a GPU: its memory there) has been, libraries included."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
