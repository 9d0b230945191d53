"""A step's KL is that of the step: dropout and NEFTune's noise are in the training passes alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import metrics, small
from torch import nn

from multiticket.models import load_model
from multiticket.train.noise import trains_with_noise, without_noise
from multiticket.train.run import run_training

TINY, LARGE = 1e-9, 2e-2


def base(toy: Path, folder: Path, attention_dropout: float) -> Path:
    shutil.copytree(toy, folder)
    settings = json.loads((folder / "config.json").read_text())
    assert "attention_dropout" in settings
    (folder / "config.json").write_text(json.dumps({**settings, "attention_dropout": attention_dropout}))
    return folder


@pytest.mark.parametrize(
    ("options", "dropout"), [({"neftune_noise_alpha": 5.0}, 0.0), ({}, 0.5)], ids=["neftune", "dropout"]
)
@pytest.mark.parametrize("arm", ["ticket", "full"])
def test_a_step_that_moves_nothing_has_no_kl(
    arm: str, options: dict[str, Any], dropout: float, toy_model_folder: Path, tmp_path: Path
) -> None:
    model = base(toy_model_folder, tmp_path / "base", dropout)
    kls = {}
    for rate in (TINY, LARGE):
        settings = small(model, arm, steps=2, grpo=options, learning_rate=rate, eval_every=None)
        run_training(settings, tmp_path / f"{rate}", show_progress=False)
        kls[rate] = [line["kl"] for line in metrics(tmp_path / f"{rate}")]
    assert max(kls[TINY]) < 1e-9
    assert min(kls[LARGE]) > 1e-4


def test_the_rate_that_is_found_does_not_follow_from_noise(toy_model_folder: Path, tmp_path: Path) -> None:
    model = base(toy_model_folder, tmp_path / "base", 0.5)
    settings = small(model, steps=1, learning_rate="auto", eval_every=None)
    result = run_training(settings, tmp_path / "run", show_progress=False)
    (line,) = metrics(tmp_path / "run")
    assert line["kl_per_completion"] == pytest.approx(settings.target_kl_per_completion, rel=0.2)
    assert result["learning_rate"] > 1e-4


class Jittery(nn.Module):
    router_jitter_noise = 0.0

    def __init__(self, jitter: float) -> None:
        super().__init__()
        self.router_jitter_noise = jitter


@pytest.mark.parametrize(
    ("model", "noisy"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), True),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)), False),
        (nn.AlphaDropout(0.5), True),
        (Jittery(0.01), True),
        (Jittery(0.0), False),
    ],
)
def test_what_counts_as_noise(model: nn.Module, noisy: bool) -> None:
    assert trains_with_noise(model) is noisy
    assert trains_with_noise(model, neftune_noise_alpha=5.0)


def test_each_module_trains_as_before(toy_model_folder: Path) -> None:
    model: Any = load_model(str(toy_model_folder))[0]
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.Embedding)).eval()
    with without_noise(model):
        assert not any(module.training for module in model.modules())
    assert not frozen.training
    assert all(module.training for module in model.modules() if module is not frozen)
