"""Where a run's numbers are shown beside its own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.integrations import TensorBoardCallback, is_trackio_available, is_wandb_available

_INSTALLED = {"wandb": is_wandb_available, "trackio": is_trackio_available}


def check_installed(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker that is not installed; transformers logs to those that are."""
    for name in names:
        if name in _INSTALLED and not _INSTALLED[name]():
            raise ValueError(f"{name} is not installed: pip install {name}, or remove it from report_to.")


def tensorboard(path: Path, done: int) -> Any:
    """Writes event files below `path`; what an interrupted run logged after step `done` is marked as void."""
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(log_dir=str(path), purge_step=done + 1 if done else None))
