"""The LoRA arm from settings to score, and masks by every method."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_task import TASK

from multiticket import arms, config
from multiticket.arms.adapter import adapter_rank, with_adapter
from multiticket.arms.facts import LORA_RATE_TIMES_ALPHA
from multiticket.arms.masks import build_mask, rollout_losses
from multiticket.evaluate.evaluation import evaluate
from multiticket.evaluate.trained import Trained, measure
from multiticket.mask.selectors import SELECTORS
from multiticket.models import load_model
from multiticket.research.report.tables import arm_name
from multiticket.ticket import Ticket
from multiticket.train.run import run_training
from multiticket.train.step_kl import StepKL
from multiticket.train.trainer import RLVRTrainer

STEPS = 10
RATE = 6e-2 / 32


def _settings(folder: Path, arm: str = "lora", **more: Any) -> config.RunConfig:
    settings: dict[str, Any] = {
        "task": "toy_task:TASK",
        "model": str(folder),
        "arm": arm,
        "density": 0.1,
        "steps": STEPS,
        "rollouts": 80,
        "group": 8,
        "eval": {"problems": 20, "samples": 4},
    }
    return config.build({**settings, **more})


@pytest.fixture(scope="module")
def lora_run(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("runs") / "lora"
    settings = _settings(toy_model_folder, learning_rate=RATE, save_every=4)
    return output, run_training(settings, output, show_progress=False)


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_lora_trains_an_adapter_and_leaves_it(
    lora_run: tuple[Path, dict[str, Any]], toy_model_folder: Path
) -> None:
    output, result = lora_run
    model, tokenizer = load_model(str(toy_model_folder))
    per_rank = 2 * (
        32 + 32 + 2 * (32 + 16) + 32 + 32 + 3 * (32 + 64)
    )  # q, k and v, o; gate, up, down; two layers
    numel = sum(p.numel() for p in model.parameters())
    rank = round(0.1 * numel / per_rank)
    assert result["numel"] == numel
    assert result["lora_rank"] == rank >= 1
    assert result["nnz"] == rank * per_rank
    assert result["density"] == result["nnz"] / numel
    assert arm_name(result) == f"lora rank {rank} (seed 0)"
    assert result["versions"]["peft"]
    assert (result["arm"], result["method"], result["file"]) == ("lora", None, "adapter")
    saved = load_file(output / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == result["nnz"]
    assert not (output / "model").exists()

    lines = _lines(output)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line["kl"] > 0 and line["grad_norm"] > 0 for line in lines)
    assert result["eval"]["after"]["reward"] > 1.3 * result["eval"]["before"]["reward"]
    assert (
        result["eval"]["before"]
        == evaluate(model, tokenizer, TASK, _settings(toy_model_folder).eval).summary()
    )


def test_loras_score_is_that_of_base_plus_alpha_over_rank_times_b_a(
    lora_run: tuple[Path, dict[str, Any]], toy_model_folder: Path
) -> None:
    """The file means W + B A, which plain matrix products confirm."""
    output, result = lora_run
    saved = load_file(output / "adapter" / "adapter_model.safetensors")
    merged, tokenizer = load_model(str(toy_model_folder))
    weights = dict(merged.named_parameters())
    with torch.no_grad():
        for name, a in saved.items():
            if ".lora_A." in name:
                b = saved[name.replace(".lora_A.", ".lora_B.")]
                weight = weights[name.removeprefix("base_model.model.").replace(".lora_A", "")]
                weight += 32 / len(a) * b @ a
    by_hand = evaluate(merged, tokenizer, TASK, _settings(toy_model_folder).eval).summary()
    assert by_hand["greedy"] == result["eval"]["after"]["greedy"]
    assert by_hand["reward"] == pytest.approx(result["eval"]["after"]["reward"], abs=0.02)

    base, _ = load_model(str(toy_model_folder))
    adapted = with_adapter(base, output / "adapter")
    ids = torch.randint(2, 16, (4, 12))
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_killed_lora_run_resumes_to_the_same_bits(
    lora_run: tuple[Path, dict[str, Any]], toy_model_folder: Path, tmp_path: Path
) -> None:
    output, result = lora_run
    copy = tmp_path / "killed"
    shutil.copytree(output, copy)
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "adapter")
    shutil.rmtree(copy / "checkpoints" / f"step-{STEPS}")
    settings = _settings(toy_model_folder, learning_rate=RATE, save_every=4)
    resumed = run_training(settings, copy, resume=True, show_progress=False)
    assert resumed["eval"] == result["eval"]
    name = "adapter/adapter_model.safetensors"
    assert (copy / name).read_bytes() == (output / name).read_bytes()


def test_a_lora_checkpoint_can_be_measured(
    lora_run: tuple[Path, dict[str, Any]], toy_model_folder: Path
) -> None:
    output, result = lora_run
    trained = Trained(checkpoint=output / "checkpoints" / f"step-{STEPS}")
    evaluation, about = measure(_settings(toy_model_folder), None, trained, None)
    assert evaluation.summary() == result["eval"]["after"]
    assert about["model"] == str(toy_model_folder)


def test_loras_beginning_is_the_base_and_its_seeds_are_the_runs(toy_model_folder: Path) -> None:
    base, _ = load_model(str(toy_model_folder))
    ids = torch.randint(2, 16, (4, 12))
    expected = base(ids).logits
    adapters = []
    for ambient, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(ambient)
        before = torch.get_rng_state()
        settings = _settings(toy_model_folder, seed=seed, lora_rank=2)
        model = arms.get("lora").prepare(load_model(str(toy_model_folder))[0], None, settings).model
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(model(ids).logits, expected)
        adapters.append([p.detach() for p in model.parameters() if p.requires_grad])
    same = [torch.equal(a, b) for a, b in zip(adapters[0], adapters[1], strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(adapters[1], adapters[2], strict=True))


def test_loras_rank_and_alpha_can_be_given(toy_model_folder: Path) -> None:
    settings = _settings(toy_model_folder, lora_rank=3, lora_alpha=12)
    model, _ = load_model(str(toy_model_folder))
    assert adapter_rank(model, settings) == 3
    prepared = arms.get("lora").prepare(model, None, settings)
    adapted = prepared.model
    scalings = {m.scaling["default"] for m in adapted.modules() if hasattr(m, "lora_A")}
    assert scalings == {4.0}
    assert settings.usual_rate == pytest.approx(config.OTHER_MODELS * LORA_RATE_TIMES_ALPHA / 12)
    assert prepared.nnz % 3 == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_auto_serves_lora(
    dtype: str, toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under bf16 weights too, where the adapter stays fp32."""
    moved: list[float] = []
    step_kl = RLVRTrainer.step_kl

    def noted(self: RLVRTrainer) -> StepKL:
        kl = step_kl(self)
        moved.append(kl.completion)
        return kl

    monkeypatch.setattr(RLVRTrainer, "step_kl", noted)
    settings = _settings(toy_model_folder, learning_rate="auto", target_kl=0.02, steps=2, dtype=dtype)
    result = run_training(settings, tmp_path / "auto", show_progress=False)
    adapter = load_file(tmp_path / "auto" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert moved[0] == pytest.approx(settings.target_kl_per_completion, rel=0.06)
    assert result["learning_rate_asked"] == "auto"
    assert result["learning_rate"] != settings.usual_rate


OPTIONS: dict[str, dict[str, Any]] = {
    "layers": {"layers": "last"},
    "modules": {"modules": "mlp"},
    "magnitude": {"which": "smallest"},
    "fisher": {"rollouts": 16},
}


@pytest.mark.parametrize("method", [*SELECTORS, "magnitude", "principal", "off-principal", "fisher"])
def test_a_ticket_can_be_trained_by_every_method(method: str, toy_model_folder: Path, tmp_path: Path) -> None:
    """And its file gives the mask back: as a rule, or as positions where data chose them."""
    settings = _settings(
        toy_model_folder,
        "ticket",
        density=0.05,
        method=method,
        mask_options=OPTIONS.get(method, {}),
        steps=1,
        learning_rate=1e-2,
        eval={"problems": 2, "samples": 1},
    )
    result = run_training(settings, tmp_path / "run", show_progress=False)
    assert result["method"] == method
    (section,) = Ticket.load(tmp_path / "run" / "ticket.safetensors").sections
    model, tokenizer = load_model(str(toy_model_folder))
    mask = build_mask(model, settings, tokenizer)
    assert section.mask.rule == mask.rule
    assert section.mask.follows_rule == (method in SELECTORS)
    assert result["nnz"] == mask.nnz
    for name in mask.names:
        assert torch.equal(section.mask.indices(name), mask.indices(name))


def test_fisher_takes_the_largest_squared_gradients_of_own_rollouts(toy_model_folder: Path) -> None:
    settings = _settings(toy_model_folder, "ticket", method="fisher", mask_options={"rollouts": 8})
    model, tokenizer = load_model(str(toy_model_folder))
    required = [p.requires_grad for p in model.parameters()]
    mask = build_mask(model, settings, tokenizer)
    assert [p.requires_grad for p in model.parameters()] == required
    assert all(p.grad is None for p in model.parameters())

    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for loss in rollout_losses(model, tokenizer, settings, 8):
        model.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            squares[name] += parameter.grad**2
    for name in mask.names:
        flat = squares[name].flatten()
        chosen = flat[mask.indices(name)]
        others = torch.ones(len(flat), dtype=torch.bool)
        others[mask.indices(name)] = False
        assert chosen.min() >= flat[others].max() * (1 - 1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "fisher", "mask_options": {"rollouts": 0}}, "whole number of at least 1"),
        ({"method": "fisher", "mask_options": {"batches": 2}}, "no option 'batches'"),
        ({"method": "fisher", "part": 1}, "part 0 only"),
        ({"method": "magnitude", "mask_options": {"which": "odd"}}, "'largest' or 'smallest'"),
    ],
)
def test_a_methods_mistakes_are_said(settings: dict[str, Any], says: str, toy_model_folder: Path) -> None:
    model, tokenizer = load_model(str(toy_model_folder))
    with pytest.raises(ValueError, match=says):
        build_mask(model, _settings(toy_model_folder, "ticket", **settings), tokenizer)


@pytest.mark.parametrize("arm", ["full", "lora"])
def test_a_tokenizer_that_cannot_be_saved_is_refused_before_the_training(
    arm: str, toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    def fails(self: Any, folder: str) -> None:
        raise NotImplementedError("no slow files")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fails)
    with pytest.raises(ValueError, match="tokenizer cannot be saved beside the trained model: no slow files"):
        run_training(
            config.build({"task": "toy_task:TASK", "model": str(toy_model_folder), "arm": arm}),
            tmp_path / "run",
            show_progress=False,
        )
    assert not (tmp_path / "run").exists()


def test_a_folder_without_an_adapter_is_refused(toy_model_folder: Path, tmp_path: Path) -> None:
    model, _ = load_model(str(toy_model_folder))
    with pytest.raises(ValueError, match="is not a PEFT adapter"):
        with_adapter(model, tmp_path)
