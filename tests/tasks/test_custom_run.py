"""Runs of one's own task, whatever its score does."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from multiticket import config as settings
from multiticket.train.run import run_training

SCORES = """
def partly(completion, answer, metadata, prompt):
    assert prompt == str(metadata["a"]) + "="
    return 1.0 if completion.strip() == answer else 0.25

def broken(completion, answer):
    return 1 / 0

def sometimes(completion, answer):
    return None if answer in "02468" else 0.5
"""


@pytest.fixture
def run(toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "scores_for_runs.py").write_text(SCORES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scores_for_runs", raising=False)
    rows = [{"prompt": f"{n}=", "answer": n % 10, "metadata": {"a": n}} for n in range(100)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def train(score: str, output: str = "run") -> dict[str, Any]:
        config = settings.build(
            {
                "task": f"scores_for_runs:{score}@{tmp_path / 'data.jsonl'},max_completion_tokens=3",
                "model": str(toy_model_folder),
                "steps": 2,
                "rollouts": 16,
                "group": 4,
                "density": 0.1,
                "samples_every": 1,
                "eval": {"problems": 6, "samples": 1},
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
