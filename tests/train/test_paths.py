"""A run of a ticket on the path of accelerators, tried on a CPU: it learns alike, resumes, and changes paths."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import made, metrics, small

from multiticket.train.run import run_training


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch):
    """Sets the path that ``attach`` takes by itself."""

    def choose(hooks: bool) -> None:
        monkeypatch.setattr("multiticket.sparse.choose_path._hooks_fit", lambda *_: hooks)

    return choose


def stopped_early(run: Path, folder: Path, step: int) -> Path:
    """The run as it lay when its checkpoint of ``step`` was the newest, and it was killed."""
    shutil.copytree(run, folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    (folder / "result.json").unlink()
    (folder / "ticket.safetensors").unlink()
    return folder


def test_a_run_learns_alike_and_resumes_on_either_path(path, toy_model_folder: Path, tmp_path: Path) -> None:
    config = small(toy_model_folder, keep_last=9, eval_every=None)
    path(False)
    run_training(config, tmp_path / "direct", show_progress=False)
    path(True)
    run_training(config, tmp_path / "hooks", show_progress=False)
    for line, other in zip(metrics(tmp_path / "direct"), metrics(tmp_path / "hooks"), strict=True):
        assert line.keys() == other.keys()
    first = metrics(tmp_path / "direct")[0], metrics(tmp_path / "hooks")[0]
    assert first[0]["reward"] == first[1]["reward"]
    assert first[0]["kl"] == pytest.approx(first[1]["kl"], rel=1e-3)

    again = stopped_early(tmp_path / "hooks", tmp_path / "again", 4)
    run_training(config, again, resume=True, show_progress=False)
    assert made(again) == made(tmp_path / "hooks")

    moved = stopped_early(tmp_path / "direct", tmp_path / "moved", 4)
    run_training(config, moved, resume=True, show_progress=False)
    ends = [load_file(folder / "ticket.safetensors") for folder in (tmp_path / "direct", moved)]
    for name, values in ends[0].items():
        torch.testing.assert_close(values, ends[1][name], rtol=0, atol=2e-2)
