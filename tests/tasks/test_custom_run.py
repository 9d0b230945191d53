"""Runs of one's own task, whatever its score does."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from multiticket import config as settings
from multiticket.models import load_model
from multiticket.research.report.tables import print_result
from multiticket.ticket import Ticket
from multiticket.train.run import run_training

SCORES = """
def partly(completion, answer, metadata, prompt):
    assert prompt == str(metadata["a"]) + "="
    return 1.0 if completion.strip() == answer else 0.25

def broken(completion, answer):
    return 1 / 0

def sometimes(completion, answer):
    return None if answer in "02468" else 0.5

def never(completion, answer):
    return 0.0

class Whole:
    name = "whole"
    max_completion_tokens = 3

    def problems(self, split):
        from datasets import Dataset

        first = {"train": 0, "validation": 1, "test": 2}[split]
        numbers = range(first, 120, 3)
        return Dataset.from_dict({"prompt": [f"{n}=" for n in numbers], "answer": [str(n % 10) for n in numbers]})

    def score(self, completion, answer):
        raise RuntimeError("the judge is out")

    def correct(self, completion, answer):
        return False

class Mostly(Whole):
    def score(self, completion, answer):
        return 0.5 if answer in "13579" else 1 / 0
"""


@pytest.fixture
def run(toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "scores_for_runs.py").write_text(SCORES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scores_for_runs", raising=False)
    rows = [{"prompt": f"{n}=", "answer": n % 10, "metadata": {"a": n}} for n in range(100)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def train(score: str, output: str = "run", **more: Any) -> dict[str, Any]:
        config = settings.build(
            {
                "task": f"scores_for_runs:{score}"
                + (f"@{tmp_path / 'data.jsonl'},max_completion_tokens=3" if score.islower() else ""),
                "model": str(toy_model_folder),
                "steps": 2,
                "rollouts": 16,
                "group": 4,
                "samples_every": 1,
                "eval": {"problems": 6, "samples": 1},
                **({} if more.get("arm") == "full" else {"density": 0.1}),
                **more,
            }
        )
        return run_training(config, tmp_path / output, show_progress=False)

    return train


def test_metadata_reaches_the_score_and_stays_out_of_the_samples(run: Any, tmp_path: Path) -> None:
    result = run("partly")
    assert result["eval"]["after"]["reward"] >= 0.25
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {tuple(sample) for sample in samples} == {("step", "prompt", "completion", "answer", "reward")}


def test_a_score_that_always_fails_ends_the_run_and_leaves_nothing(run: Any, tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="ZeroDivisionError: division by zero") as warned,
        pytest.raises(ValueError, match="failed on 12 of 12 completions, so nothing can be learned"),
    ):
        run("broken")
    assert sum("ZeroDivisionError" in str(warning.message) for warning in warned) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:The score of")
def test_failures_are_counted_in_every_step(run: Any, tmp_path: Path) -> None:
    run("sometimes")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["failures"] < 16 for line in lines)


def test_a_task_that_always_fails_ends_the_run_and_leaves_nothing(run: Any, tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="RuntimeError: the judge is out"),
        pytest.raises(ValueError, match=r"The score whole failed on .* The last failure: RuntimeError"),
    ):
        run("Whole")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:The score of")
def test_failures_of_a_task_are_counted_and_shown(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run("Mostly")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < result["failures"] == sum(line["failures"] for line in lines) < 32
    print_result(result, tmp_path / "run")
    assert f"{result['failures']} scores failed" in capsys.readouterr().out


def test_a_run_without_any_signal_moves_nothing_finds_no_rate_and_says_so(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run("never")
    assert result["learning_rate"] is None
    assert result["learning_rate_asked"] == "auto"
    ticket = Ticket.load(tmp_path / "run" / "ticket.safetensors")
    assert ticket.told["no_signal"] == 1.0
    assert ticket.told["learning_rate"] == "auto"
    model, _ = load_model(result["model"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ticket.merge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines] == [0.0, 0.0]
    print_result(result, tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "rate not found" in said
    assert "rewards differed in 0.0 % of the groups of rollouts: nothing could be learned" in said


@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
def test_decay_alone_moves_nothing_at_a_rate_that_is_given(run: Any, arm: str, tmp_path: Path) -> None:
    result = run("never", arm=arm, learning_rate=0.1, eval={"problems": 40, "samples": 2})
    before, after = result["eval"]["before"], result["eval"]["after"]
    assert {**before, "wall_s": 0} == {**after, "wall_s": 0}
    if arm == "full":
        model, _ = load_model(str(tmp_path / "run" / "model"))
        base, _ = load_model(result["model"])
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
