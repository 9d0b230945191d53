"""What a dry run says, against what a run does."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_task import TASK

from multiticket import config
from multiticket.cli import main
from multiticket.mask import Mask, MaskRule
from multiticket.models import load_model
from multiticket.plan.memory import plan
from multiticket.plan.preview import preview
from multiticket.plan.workload import Workload
from multiticket.train.recipe import grpo_config
from multiticket.train.rewards import reward_function
from multiticket.train.trainer import RLVRTrainer

SMALL: dict[str, Any] = {"task": "toy_task:TASK", "rollouts": 64, "group": 8, "steps": 10, "micro_batch": 16}


@pytest.fixture(scope="module")
def without_weights(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config-only") / "model"
    shutil.copytree(toy_model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def _preview(folder: Path, **settings: Any) -> dict[str, Any]:
    return preview(config.build({**SMALL, "model": str(folder), **settings}), Path("runs/none"))


def test_trained_positions_and_memory_are_those_of_the_mask_and_the_plan(
    without_weights: Path, toy_model_folder: Path
) -> None:
    found = _preview(without_weights, density=0.1, scope="*mlp*")
    model, _ = load_model(str(toy_model_folder))
    mask = Mask.random(model, density=0.1, scope="*mlp*")
    everywhere = Mask.random(model, density=0.1)
    assert 0 < mask.nnz < everywhere.nnz
    assert (found["trained"], found["parameters"]) == (mask.nnz, everywhere.numel)
    assert found["memory"]["moments"] == 2 * 4 * mask.nnz
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked: dict[str, Any] = {"density": 0.1, "tokens": 7, "batch": 16, "dtype": "float32", "padded": True}
    asked |= {"completions": 512, "generated": (103, 3, 4, 2**17)}  # 5 of each of an evaluation's problems
    planned = plan(Workload(str(without_weights), arms=("ticket",), device=device, **asked))
    if device == "cpu":  # prompts lie in memory once
        assert planned.arms[0].cache == (103 * 3 + 512 * 4) * 2 * 2 * 16 * 4
    whole = _preview(without_weights, density=0.1)["memory"]
    assert {name: whole[name] for name in asdict(planned.arms[0])} == asdict(planned.arms[0])
    assert found["memory"]["activations"] < whole["activations"]  # what only the other layers' gradients need
    assert found["memory"]["cache"] == whole["cache"]
    assert found["memory"]["peak"] == max(found["memory"]["training"], found["memory"]["generation"])


@pytest.mark.parametrize(
    ("method", "options"),
    [("magnitude", {}), ("principal", {}), ("layers", {"layers": "first"}), ("columns", {})],
)
def test_masks_of_every_method_are_counted(
    method: str, options: dict[str, str], without_weights: Path, toy_model_folder: Path
) -> None:
    found = _preview(without_weights, method=method, density=0.1, mask_options=options)
    model, _ = load_model(str(toy_model_folder))
    rule = MaskRule(method=method, density=0.1, seed=0, part=0, scope="all", options=options)
    assert found["trained"] == Mask.from_rule(model, rule).nnz


def test_work_is_counted(without_weights: Path) -> None:
    found = _preview(without_weights, save_every=4, eval={"problems": 25, "samples": 3})
    assert found["work"] == {
        "optimiser_steps": 10,
        "passes_a_step": 4,
        "problems": 40,
        "problems_a_step": 8,
        "epochs": 2.0,
        "rollouts": 640,
        "longest_prompt": 3,
        "longest_completion": 4,
        "generated_tokens_at_most": 2560,
        "trained_tokens_at_most": 640 * 7,
        "checkpoints": 3,
    }
    assert found["evaluation"] == {
        "split": "test",
        "problems": 25,
        "completions": 2 * 25 * 4,
        "generated_tokens_at_most": 800,
    }


def test_changed_settings_are_marked(without_weights: Path) -> None:
    found = _preview(without_weights, seed=3, eval={"samples": 2}, grpo={"epsilon": 0.3})
    given = {"task", "model", "rollouts", "group", "steps", "micro_batch", "seed", "training_seed", "grpo"}
    assert set(found["changed"]) == {*given, "eval.samples"}
    assert found["settings"]["grpo"] == {"epsilon": 0.3}
    assert "steps" not in _preview(without_weights, steps=50)["changed"]  # the default, given


def test_checkpointing_passed_through_shows_in_the_plan(without_weights: Path) -> None:
    plain, saving = (
        _preview(without_weights, grpo=grpo)["memory"] for grpo in ({}, {"gradient_checkpointing": True})
    )
    assert saving["activations"] < plain["activations"]
    assert saving["recomputed"] > plain["recomputed"] == 0


@pytest.mark.parametrize(
    ("arm", "dtype"), [("full", "bfloat16"), ("full", "float32"), ("ticket", "bfloat16")]
)
def test_state_is_what_the_trainer_holds(
    arm: str, dtype: str, toy_model_folder: Path, tmp_path: Path
) -> None:
    density = {"density": 0.2} if arm == "ticket" else {}
    run = config.build(
        {**SMALL, "model": str(toy_model_folder), "arm": arm, "dtype": dtype, "steps": 1, **density}
    )
    memory = preview(run, tmp_path / "none")["memory"]
    model, tokenizer = load_model(str(toy_model_folder), dtype)
    from multiticket.sparse import attach

    sizes = {}

    class Watching(RLVRTrainer):
        def _clip_grad_norm(self, model: Any) -> Any:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            sizes["gradients"] = sum(grad.nbytes for grad in grads)
            return super()._clip_grad_norm(model)

    trainer = Watching(
        model=model,
        reward_funcs=reward_function(TASK),
        args=grpo_config(run, tmp_path, TASK.max_completion_tokens),
        train_dataset=TASK.problems("train"),
        processing_class=tokenizer,
        attachment=attach(model, Mask.random(model, density=0.2)) if arm == "ticket" else None,
        kl_rollouts=0,
    )
    trainer.train()
    assert trainer.optimizer is not None
    states = list(trainer.optimizer.state.values())
    assert memory["moments"] == sum(s["exp_avg"].nbytes + s["exp_avg_sq"].nbytes for s in states)
    assert memory["gradients"] == sizes["gradients"]
    assert memory["weights"] == sum(
        p.nbytes for n, p in model.named_parameters() if not n.endswith("__values")
    )
    assert all(torch.is_tensor(s["exp_avg"]) for s in states)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rollouts": 1024}, "A step takes 128 problems"),
        ({"grpo": {"max_steps": 3}}, "give --steps"),
        ({"model": "no-such/model"}, "Cannot read the tokenizer of 'no-such/model'"),
        ({"density": 1e-7, "learning_rate": 1.0}, "empty"),
    ],
)
def test_what_the_run_would_refuse_is_refused(
    settings: dict[str, Any], says: str, without_weights: Path
) -> None:
    with pytest.raises(ValueError, match=r"\.$") as refusal:
        _preview(without_weights, **{**({"micro_batch": 1024} if "rollouts" in settings else {}), **settings})
    assert says in str(refusal.value)


def _command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, output.out, output.err


def test_the_command_prints_and_writes_nothing(
    without_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["train", "--dry-run", "--task", "toy_task:TASK", "--model", str(without_weights)]
    small += ["--rollouts", "64", "--set", "epsilon=0.25"]
    code, out, _ = _command([*small, "--json"], capsys)
    found = json.loads(out)
    assert code == 0
    assert found["settings"]["grpo"] == {"epsilon": 0.25}
    code, out, _ = _command(small, capsys)
    assert code == 0
    assert f"{found['trained']:,} of {found['parameters']:,} parameters" in out
    assert "3,200" in out  # rollouts
    assert not list(tmp_path.iterdir())

    Path("run").mkdir()
    Path("run", "config.json").write_text("{}")
    for arguments, says in ((["--output", "run"], "already holds a run"), (["--resume"], "omit --resume")):
        code, out, err = _command([*small, *arguments], capsys)
        assert (code, out) == (2, "")
        assert says in err
