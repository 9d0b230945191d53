"""What TRL pushes to vLLM while a ticket trains, with a stand-in for vLLM that takes a plain checkpoint only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stand_in_engine import StandInClient, StandInLLM
from toy_task import TASK
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl.generation import vllm_generation

from multiticket import config
from multiticket.mask import Mask
from multiticket.models import load_model
from multiticket.sparse import attach
from multiticket.train import grpo_options
from multiticket.train.engine_weights import push_plain_weights
from multiticket.train.recipe import grpo_config
from multiticket.train.rewards import reward_function
from multiticket.train.trainer import RLVRTrainer


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(grpo_options, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", StandInLLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    monkeypatch.setattr(vllm_generation, "VLLMClient", StandInClient)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # colocate mode sets these; they are put back after the test
        monkeypatch.delenv(name)
    StandInLLM.made.clear()
    StandInClient.made.clear()


@pytest.fixture(scope="module")
def untied_folder(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    untied = AutoConfig.from_pretrained(toy_model_folder, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("untied")
    AutoModelForCausalLM.from_config(untied).save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy_model_folder).save_pretrained(folder)
    return folder


def _train(folder: Path, output: Path, arm: str, options: dict[str, Any]) -> tuple[RLVRTrainer, Any]:
    """Two steps; the trainer and the stand-in that generated for it."""
    settings = {"arm": arm, "steps": 2, "rollouts": 16, "group": 4, "grpo": {"use_vllm": True, **options}}
    run = config.build({**settings, "learning_rate": 0.05, **({"density": 0.3} if arm == "ticket" else {})})
    StandInClient.folder = str(folder)
    model, tokenizer = load_model(str(folder))
    trainer = RLVRTrainer(
        model=model,
        reward_funcs=reward_function(TASK),
        args=grpo_config(run, output, TASK.max_completion_tokens),
        train_dataset=TASK.problems("train"),
        processing_class=tokenizer,
        attachment=attach(model, Mask.random(model, density=0.3)) if arm == "ticket" else None,
        kl_rollouts=run.kl_rollouts,
    )
    trainer.train()
    return trainer, (*StandInLLM.made, *StandInClient.made)[-1]


def _same(pushed: dict[str, torch.Tensor], checkpoint: dict[str, torch.Tensor]) -> None:
    assert set(pushed) == set(checkpoint)
    for name, tensor in checkpoint.items():
        assert pushed[name].dtype == tensor.dtype
        assert torch.equal(pushed[name], tensor), name


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"vllm_mode": "server"},
        {"vllm_mode": "colocate"},
        {"vllm_mode": "colocate", "vllm_enable_sleep_mode": True},
    ],
    ids=["server", "colocate", "sleep"],
)
def test_an_engine_gets_a_plain_checkpoint_with_the_current_values(
    options: dict[str, Any], tied: bool, toy_model_folder: Path, untied_folder: Path, tmp_path: Path
) -> None:
    folder = toy_model_folder if tied else untied_folder
    trainer, stand_in = _train(folder, tmp_path / "run", "ticket", options)
    base = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in base) is not tied
    _same(stand_in.engine.pushes[0], base)

    trainer.vllm_generation.sync_weights()
    trainer.model.save_pretrained(tmp_path / "plain")
    trained = load_file(tmp_path / "plain" / "model.safetensors")
    _same(stand_in.engine.pushes[-1], trained)
    assert all(not torch.equal(trained[name], base[name]) for name in base)
    first_step = stand_in.engine.pushes[-2]
    assert set(first_step) == set(base)
    assert all(not torch.equal(first_step[name], base[name]) for name in base)
    assert all(not torch.equal(first_step[name], trained[name]) for name in base)
    if options["vllm_mode"] == "server":
        assert all([name for name, *_ in told] == list(first_step) for told in stand_in.announced)


@pytest.mark.usefixtures("vllm")
def test_what_the_engine_sampled_is_what_the_trainer_scores(toy_model_folder: Path, tmp_path: Path) -> None:
    """With the pushed weights the engine's log-probabilities are the trainer's own: importance ratios are 1."""
    trainer, _ = _train(toy_model_folder, tmp_path, "ticket", {"vllm_mode": "colocate"})
    logs = [line for line in trainer.state.log_history if "reward" in line]
    assert len(logs) == 2
    for line in logs:
        assert line["sampling/sampling_logp_difference/max"] < 1e-4
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)


@pytest.mark.usefixtures("vllm")
def test_the_full_arm_pushes_as_trl_does(toy_model_folder: Path, tmp_path: Path) -> None:
    trainer, stand_in = _train(toy_model_folder, tmp_path / "run", "full", {"vllm_mode": "server"})
    trainer.vllm_generation.sync_weights()
    trainer.model.save_pretrained(tmp_path / "plain")
    _same(stand_in.engine.pushes[-1], load_file(tmp_path / "plain" / "model.safetensors"))


def test_values_changed_by_hand_are_written_before_they_are_pushed(toy_model_folder: Path) -> None:
    model, _ = load_model(str(toy_model_folder))
    attachment = attach(model, Mask.random(model, density=0.3))
    bridge = SimpleNamespace(_iter_named_params=lambda: ((n, p.data) for n, p in model.named_parameters()))
    push_plain_weights(bridge, attachment)
    with torch.no_grad():
        for values in attachment.parameters():
            values.data.fill_(7.0)
    pushed = dict(bridge._iter_named_params())
    for name in attachment.mask.names:
        assert (pushed[name].flatten()[attachment.mask.indices(name)] == 7).all()


def test_another_way_of_pushing_is_refused(toy_model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"install TRL 1\.16"):
        push_plain_weights(SimpleNamespace(), None)  # type: ignore[arg-type]
