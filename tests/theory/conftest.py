"""Finished toy runs of every arm with checkpoints, made once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_runs(tmp_path_factory: pytest.TempPathFactory, toy_model_folder: Path) -> dict[str, Path]:
    """Folders of runs of 4 steps, a checkpoint every 2, by arm."""
    from small_runs import small

    from multiticket.train.run import run_training

    folder = tmp_path_factory.mktemp("runs")
    for arm in ("full", "ticket", "lora"):
        config = small(toy_model_folder, arm, steps=4, keep_last=9, eval_every=None)
        run_training(config, folder / arm, show_progress=False)
    return {arm: folder / arm for arm in ("full", "ticket", "lora")}
