"""Whole runs: what lies in the folder, the same again, interrupted and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_runs import metrics, small
from toy_task import TASK
from transformers import GPT2Config, GPT2LMHeadModel

from multiticket import config, tasks
from multiticket.config import EvalConfig
from multiticket.evaluate.evaluation import evaluate
from multiticket.generate.prompts import refuse_too_long
from multiticket.mask import Mask
from multiticket.models import load_model
from multiticket.runs.folder import RunFolder
from multiticket.tasks import Asking
from multiticket.ticket import Ticket
from multiticket.train.evaluations import evaluate_kept
from multiticket.train.peak_memory import CLEAR
from multiticket.train.run import run_training
from multiticket.train.setup import set_up

STEPS = 8  # four steps an epoch: 40 problems, 10 a step


def _settings(folder: Path, arm: str, **more: Any) -> config.RunConfig:
    settings: dict[str, Any] = {
        "task": "toy_task:TASK",
        "model": str(folder),
        "arm": arm,
        "learning_rate": 3e-3 if arm == "full" else 2e-2,
        "steps": STEPS,
        "rollouts": 80,
        "group": 8,
        "save_every": 3,
        "keep_last": 3,
        "eval": {"problems": 20, "samples": 4},
    }
    if arm == "ticket":
        settings["density"] = 0.1
    return config.build({**settings, **more})


@pytest.fixture(scope="module")
def ticket_run(
    toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("runs") / "ticket"
    return output, run_training(_settings(toy_model_folder, "ticket"), output, show_progress=False)


@pytest.fixture(scope="module")
def full_run(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("runs") / "full"
    return output, run_training(_settings(toy_model_folder, "full"), output, show_progress=False)


def _metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _values(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "ticket.safetensors")


@pytest.mark.parametrize("arm", ["ticket", "full", "lora"])
def test_the_trained_model_is_gone_when_what_was_kept_is_read_back(
    arm: str, toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watching(run: Any, before: dict[str, Any]) -> dict[str, Any]:
        seen.append({weight.device.type for weight in run.prepared.model.parameters()})
        return evaluate_kept(run, before)

    monkeypatch.setattr("multiticket.train.run.evaluate_kept", watching)
    result = run_training(small(toy_model_folder, arm, steps=1), tmp_path / "run", show_progress=False)
    assert seen == [{"meta"}]
    assert result["nnz"] > 0


def test_a_run_folder_holds_what_the_design_says(
    ticket_run: tuple[Path, dict[str, Any]], toy_model_folder: Path
) -> None:
    output, result = ticket_run
    assert result == json.loads((output / "result.json").read_text())
    assert config.build(json.loads((output / "config.json").read_text())) == _settings(
        toy_model_folder, "ticket"
    )
    model, _ = load_model(str(toy_model_folder))
    mask = Mask.random(model, density=0.1)
    assert (result["nnz"], result["numel"]) == (mask.nnz, sum(p.numel() for p in model.parameters()))
    assert (result["task"], result["arm"], result["method"]) == ("toy_task:TASK", "ticket", "random")
    assert (result["density"], result["seed"], result["part"]) == (0.1, 0, 0)
    assert (result["learning_rate"], result["steps"]) == (2e-2, STEPS)
    assert result["file_bytes"] == (output / "ticket.safetensors").stat().st_size
    for when in ("before", "after"):
        scores = result["eval"][when]
        assert scores["n"] == 20
        assert scores["interval"][0] < scores["pass@1"] < scores["interval"][1]
        assert len((output / f"eval-{when}.jsonl").read_text().splitlines()) == 20
    assert result["wall_s"] > result["train_s"] > 0
    assert result["peak_memory_bytes"] > 1e7
    if CLEAR.exists():
        phases = [
            line[f"{phase}_peak_bytes"] for line in _metrics(output) for phase in ("generate", "train", "kl")
        ]
        held = [*phases, result["evaluation_peak_bytes"]]
        assert 1e7 < min(held) <= max(held) <= result["peak_memory_bytes"]
    assert result["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert list((output / "tensorboard").glob("events.*"))

    lines = _metrics(output)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    told = Path(__file__).parents[2].joinpath("docs", "runs.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in told for name in lines[0])
    assert all(0 <= line["reward"] <= 1 and line["kl"] > 0 and line["grad_norm"] > 0 for line in lines)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


@pytest.mark.parametrize("arm", ["ticket", "full"])
def test_training_raises_the_reward(arm: str, request: pytest.FixtureRequest) -> None:
    output, result = request.getfixturevalue(f"{arm}_run")
    lines = _metrics(output)
    assert sum(line["reward"] for line in lines[-3:]) > 1.2 * sum(line["reward"] for line in lines[:3])
    assert result["eval"]["after"]["reward"] > 1.2 * result["eval"]["before"]["reward"]


def test_the_score_is_that_of_the_base_plus_the_file(
    ticket_run: tuple[Path, dict[str, Any]], toy_model_folder: Path
) -> None:
    from toy_task import TASK

    from multiticket.evaluate.evaluation import evaluate

    output, result = ticket_run
    model, tokenizer = load_model(str(toy_model_folder))
    settings = _settings(toy_model_folder, "ticket").eval
    assert evaluate(model, tokenizer, TASK, settings).summary() == result["eval"]["before"]
    ticket = Ticket.load(output / "ticket.safetensors")
    assert ticket.provenance["scores"] == result["eval"]
    assert (ticket.provenance["task"], ticket.provenance["learning_rate"]) == ("toy_task:TASK", 2e-2)
    with ticket.applied(model):
        assert evaluate(model, tokenizer, TASK, settings).summary() == result["eval"]["after"]
    assert evaluate(model, tokenizer, TASK, settings).summary() == result["eval"]["before"]


def test_the_full_arm_leaves_a_plain_checkpoint(
    full_run: tuple[Path, dict[str, Any]], toy_model_folder: Path
) -> None:
    output, result = full_run
    trained = load_file(output / "model" / "model.safetensors")
    base = load_file(toy_model_folder / "model.safetensors")
    assert set(trained) == set(base)
    assert all(not torch.equal(trained[name], base[name]) for name in base)
    assert result["nnz"] == result["numel"]
    assert (result["density"], result["method"]) == (1.0, None)
    assert not (output / "ticket.safetensors").exists()


def test_a_tickets_checkpoints_hold_the_values_and_not_the_model(
    ticket_run: tuple[Path, dict[str, Any]],
) -> None:
    output, result = ticket_run
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["step-3", "step-6", f"step-{STEPS}"]
    checkpoint = output / "checkpoints" / "step-6"
    with safe_open(checkpoint / "values.safetensors", framework="pt") as file:
        held = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert held == result["nnz"]
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].values()
    assert sum(state["exp_avg"].numel() for state in moments) == result["nnz"]
    assert not list(checkpoint.glob("model*")) + list(checkpoint.glob("*.bin"))


@pytest.mark.parametrize("arm", ["ticket", "full"])
def test_the_same_command_twice_gives_the_same_bits(
    arm: str, request: pytest.FixtureRequest, toy_model_folder: Path, tmp_path: Path
) -> None:
    output, result = request.getfixturevalue(f"{arm}_run")
    torch.manual_seed(12345)  # what came before in the process must not matter
    again = run_training(_settings(toy_model_folder, arm), tmp_path / "again", show_progress=False)
    assert again["eval"] == result["eval"]
    assert metrics(tmp_path / "again") == metrics(output)
    name = "ticket.safetensors" if arm == "ticket" else "model/model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (output / name).read_bytes()


@pytest.mark.parametrize("seeds", [{"seed": 1}, {"training_seed": 1}, {"part": 1}])
def test_another_seed_gives_another_ticket(
    seeds: dict[str, int], ticket_run: tuple[Path, dict[str, Any]], toy_model_folder: Path, tmp_path: Path
) -> None:
    settings = _settings(toy_model_folder, "ticket", steps=1, save_every=None, **seeds)
    run_training(settings, tmp_path / "other", show_progress=False)
    ours, theirs = _metrics(ticket_run[0])[0], _metrics(tmp_path / "other")[0]
    if "part" in seeds:
        assert theirs["reward"] == ours["reward"]  # the same rollouts
        assert theirs["grad_norm"] != ours["grad_norm"]  # at other positions
    else:
        assert theirs["reward"] != ours["reward"]


@pytest.mark.parametrize(("arm", "killed_after"), [("ticket", 3), ("ticket", 6), ("full", 6), ("ticket", 0)])
def test_a_killed_run_resumes_to_the_same_bits(
    arm: str, killed_after: int, request: pytest.FixtureRequest, toy_model_folder: Path, tmp_path: Path
) -> None:
    """What a kill between steps 7 and 8 leaves, if its newest whole checkpoint is of step `killed_after`."""
    output, result = request.getfixturevalue(f"{arm}_run")
    copy = tmp_path / "killed"
    shutil.copytree(output, copy)
    for gone in ("result.json", "ticket.safetensors", "eval-after.jsonl"):
        (copy / gone).unlink(missing_ok=True)
    shutil.rmtree(copy / "model", ignore_errors=True)
    for step in (3, 6, STEPS):
        if step > killed_after:
            shutil.rmtree(copy / "checkpoints" / f"step-{step}")
    (copy / "checkpoints" / "partial-8" / "checkpoint-8").mkdir(parents=True)
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join(lines[:7]) + "\n" + lines[7][:20])

    resumed = run_training(_settings(toy_model_folder, arm), copy, resume=True, show_progress=False)
    assert resumed["eval"] == result["eval"]
    assert metrics(copy) == metrics(output)
    kept = (copy / "metrics.jsonl").read_text().splitlines()[:killed_after]
    assert [json.loads(line) for line in kept] == [json.loads(line) for line in lines[:killed_after]]
    name = "ticket.safetensors" if arm == "ticket" else "model/model.safetensors"
    assert (copy / name).read_bytes() == (output / name).read_bytes()
    assert not list((copy / "checkpoints").glob("partial-*"))


def test_resuming_a_finished_run_does_nothing(
    ticket_run: tuple[Path, dict[str, Any]], toy_model_folder: Path
) -> None:
    output, result = ticket_run
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert (
        run_training(_settings(toy_model_folder, "ticket"), output, resume=True, show_progress=False)
        == result
    )
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_bfloat16_weights_give_bfloat16_values(toy_model_folder: Path, tmp_path: Path) -> None:
    settings = _settings(toy_model_folder, "ticket", dtype="bfloat16", steps=2, save_every=None)
    run_training(settings, tmp_path / "bf16", show_progress=False)
    dtypes = {tensor.dtype for tensor in _values(tmp_path / "bf16").values()}
    assert torch.bfloat16 in dtypes
    assert torch.float32 not in dtypes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "no_such_task"}, "Unknown task 'no_such_task'"),
        ({"model": "./no/such/model"}, "There is no folder"),
        ({"model": "no-such-model"}, "Cannot load the model 'no-such-model'"),
        ({"method": "no_such_method"}, "mask by method 'no_such_method'"),
        ({"density": 1e-6, "learning_rate": 1.0}, "empty"),
        ({"part": 10}, "Part 10 does not exist"),
        ({"scope": "no_such_tensor"}, "covers none"),
        ({"rollouts": 1000}, "lower rollouts or raise group"),
    ],
)
def test_a_mistake_writes_nothing(
    change: dict[str, Any], says: str, toy_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        run_training(_settings(toy_model_folder, "ticket", **change), tmp_path / "run", show_progress=False)
    assert not list(tmp_path.iterdir())


def test_a_run_is_never_overwritten(ticket_run: tuple[Path, dict[str, Any]], toy_model_folder: Path) -> None:
    output, _ = ticket_run
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(ValueError, match="already holds a run"):
        run_training(_settings(toy_model_folder, "full"), output, show_progress=False)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_two_processes_do_not_write_one_folder(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, settings = tmp_path / "run", _settings(toy_model_folder, "ticket")
    with RunFolder(output).owned(), pytest.raises(ValueError, match="Another process is writing the run in"):
        run_training(settings, output, show_progress=False)
    assert not list(output.iterdir())

    def slowly(*given: Any) -> Any:
        """Another process begins and ends a run while this one loads its model."""
        with RunFolder(output).owned():
            RunFolder(output).create(settings)
        return set_up(*given)

    monkeypatch.setattr("multiticket.train.run.set_up", slowly)
    with pytest.raises(ValueError, match="already holds a run"):
        run_training(settings, output, show_progress=False)
    assert [path.name for path in output.iterdir()] == ["config.json"]
    with RunFolder(output).owned():  # who is refused lets go of it
        pass


def test_prompts_longer_than_the_model_reads_are_refused_before_anything_is_written(
    toy_model_folder: Path, tmp_path: Path
) -> None:
    asked = {"prompt_template": "1" * 70 + "{prompt}"}
    with pytest.raises(
        ValueError, match=r"40 of 40 train prompts are longer than the 64 tokens .* has 73, and begins"
    ):
        run_training(_settings(toy_model_folder, "ticket", **asked), tmp_path / "run", show_progress=False)
    assert not list(tmp_path.iterdir())
    model, tokenizer = load_model(str(toy_model_folder))
    with pytest.raises(ValueError, match="of 5 test prompts are longer"):
        evaluate(model, tokenizer, tasks.asked(TASK, tokenizer, Asking.of(asked)), EvalConfig(problems=5))


def test_completions_past_a_models_positions_are_told_of_or_refused(toy_model_folder: Path) -> None:
    """Computed positions go on, badly; a table of learned ones ends in an IndexError half-way through a run."""
    model, tokenizer = load_model(str(toy_model_folder))
    texts = ["1" * 10, "1" * 30]
    assert refuse_too_long(texts, tokenizer, model, "test", 34) is None
    told = refuse_too_long(texts, tokenizer, model, "test", 35)
    assert told is not None
    assert "30 tokens and a completion up to 35, more than the 64 positions" in told
    shape = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=64, n_positions=64)
    learned = GPT2LMHeadModel(shape)
    assert refuse_too_long(texts, tokenizer, learned, "test", 34) is None
    with pytest.raises(ValueError, match=r"has 64 positions: set max_completion_tokens to 34 or less"):
        refuse_too_long(texts, tokenizer, learned, "test", 35)
    with pytest.raises(ValueError, match="1 of 2 test prompts are longer"):
        refuse_too_long(["1" * 10, "1" * 70], tokenizer, learned, "test", 35)


def test_a_checkpoint_of_another_mask_is_refused(
    ticket_run: tuple[Path, dict[str, Any]], toy_model_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(ticket_run[0], copy)
    (copy / "result.json").unlink()
    with pytest.raises(ValueError, match="belong to the mask"):
        run_training(_settings(toy_model_folder, "ticket", seed=1), copy, resume=True, show_progress=False)
