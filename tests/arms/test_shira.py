"""SHiRA, the arm that one file and one line added: trained, resumed, read back, planned, in a study, on the bench."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import ShiraConfig, get_peft_model
from safetensors.torch import load_file

from multiticket import arms, bases, config
from multiticket.arms.adapter import with_adapter
from multiticket.evaluate.trained import Trained, measure, measure_kept
from multiticket.models import load_model
from multiticket.plan.memory import plan
from multiticket.plan.workload import Workload
from multiticket.research.bench.operations import predicted_over_floor
from multiticket.research.bench.shapes import SHAPES
from multiticket.research.bench.timed_arms import KINDS, choose_arms, expected_values
from multiticket.research.report.tables import arm_name
from multiticket.research.study.grid import build_study
from multiticket.research.theory.states import made_by
from multiticket.runs.folder import RunFolder
from multiticket.train.run import run_training

MODEL = "tiny-qwen2"
SETTINGS: dict[str, Any] = {
    "model": MODEL,
    "arm": "shira",
    "lora_rank": 2,
    "learning_rate": 1e-2,
    "steps": 3,
    "rollouts": 64,
    "group": 8,
    "save_every": 1,
    "beta": 0.01,
    "eval": {"problems": 16, "samples": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("runs") / "shira"
    return output, run_training(config.build(SETTINGS), output, show_progress=False)


def test_a_shipped_base_is_trained(run: tuple[Path, dict[str, Any]]) -> None:
    output, result = run
    saved = load_file(output / "adapter" / "adapter_model.safetensors")
    values = {name: tensor for name, tensor in saved.items() if name.endswith("shira_weight")}
    assert sum(tensor.numel() for tensor in values.values()) == result["nnz"]
    assert all(tensor.any() for tensor in values.values())
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["peft_type"] == "SHIRA"
    assert arm_name(result) == "shira r 2 (seed 0)"
    assert (result["lora_rank"], result["file"], result["method"]) == (2, "adapter", None)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["reference_kl"] < 1e-9 < lines[2]["reference_kl"]
    assert all(line["kl"] > 0 for line in lines)


def test_a_killed_run_resumes_to_the_same_bits(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, result = run
    copy = tmp_path / "killed"
    shutil.copytree(output, copy)
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "adapter")
    shutil.rmtree(copy / "checkpoints" / "step-3")
    resumed = run_training(config.build(SETTINGS), copy, resume=True, show_progress=False)
    assert resumed["eval"] == result["eval"]
    ours, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (copy, output))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_a_run_kept_is_read_back(run: tuple[Path, dict[str, Any]]) -> None:
    output, result = run
    settings = config.build(SETTINGS)
    after = result["eval"]["after"]
    assert measure_kept(RunFolder(output), settings).summary() == after
    for trained in (
        Trained(adapter=output / "adapter"),
        Trained(checkpoint=output / "checkpoints" / "step-3"),
    ):
        evaluation, about = measure(settings, None, trained, None)
        assert evaluation.summary() == after
        assert about["model"] == MODEL

    made = made_by(output)
    assert made is not None
    merged, _ = made.load()
    base, _ = load_model(MODEL)
    ids = torch.randint(2, 16, (4, 12))
    adapted = with_adapter(base, output / "adapter")
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_is_what_real_tensors_take(dtype: str, checkpointing: bool) -> None:
    workload = Workload(
        MODEL,
        arms=("shira",),
        dtype=dtype,
        batch=3,
        tokens=20,
        lora_rank=2,
        gradient_checkpointing=checkpointing,
    )
    (expected,) = plan(workload).arms
    model: Any = load_model(MODEL, dtype)[0]
    held = {parameter.data_ptr() for parameter in model.parameters()}
    settings = ShiraConfig(r=2, random_seed=0, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings).train()
    values = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    indices = [t for m in adapted.modules() for t in getattr(m, "shira_indices", {}).values()]
    assert expected.trained == sum(parameter.numel() for parameter in values)
    assert expected.values == sum(parameter.nbytes for parameter in values)
    assert expected.positions == sum(tensor.nbytes for tensor in indices)
    assert expected.lora_rank == 2

    if checkpointing:
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        adapted.enable_input_require_grads()
    held |= {tensor.data_ptr() for tensor in (*adapted.parameters(), *adapted.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            seen[part.untyped_storage().data_ptr()] = part
        return tensor

    ids = torch.arange(60).view(3, 20) % 12 + 2
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        adapted(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    saved = sum(t.untyped_storage().nbytes() for pointer, t in seen.items() if pointer not in held)
    assert expected.activations == pytest.approx(saved, rel=0.01)


def test_a_study_and_the_bench_have_it() -> None:
    study = build_study({"cells": [{"arm": ["lora", "shira"], "seed": [0, 1]}], "settings": {"model": MODEL}})
    assert sorted({run.config.arm for run in study.runs}) == ["lora", "shira"]
    assert len(study.runs) == 4
    shape = SHAPES["36M"]
    measured = {arm.kind: arm for arm in choose_arms(shape, KINDS, [0.01])}
    assert measured["shira"].name == "SHiRA, r 4"
    assert expected_values(shape, measured["shira"]) == expected_values(shape, measured["lora"])
    over = {kind: predicted_over_floor(shape, arm, 4, 256) for kind, arm in measured.items()}
    assert over["ticket"] < over["lora"] < over["shira"] < over["full"]


def test_its_rate_is_a_tickets_and_its_folder_says_its_size() -> None:
    asked = {**SETTINGS, "lora_rank": None, "density": 0.02}
    settings = config.build(asked)
    assert settings.usual_rate == config.build({"model": MODEL, "density": 0.02}).usual_rate
    assert settings.default_output().name == "arithmetic-tiny-qwen2-shira-0.02-seed0"
    prepared = arms.get("shira").prepare(load_model(MODEL)[0], None, settings)
    numel = sum(parameter.numel() for parameter in load_model(bases.resolve(MODEL))[0].parameters())
    assert prepared.nnz == pytest.approx(0.02 * numel, rel=0.5)
