"""Scores on held-out problems and sample completions: they look, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import metrics, small
from toy_task import CopyLetter

from multiticket.config import EvalConfig
from multiticket.evaluate.evaluation import evaluate
from multiticket.evaluate.trained import Trained, measure
from multiticket.evaluate.validation import best_step
from multiticket.models import load_model
from multiticket.runs.lines import StepLines
from multiticket.train.callbacks import samples as samples_module
from multiticket.train.callbacks.samples import ROLLOUTS, rollouts
from multiticket.train.run import run_training


@pytest.fixture(scope="module")
def watched(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("watched") / "run"
    return output, run_training(small(toy_model_folder), output, show_progress=False)


@pytest.mark.parametrize(
    "look", [{"eval_every": None}, {"samples_every": None}, {"eval_every": 1, "samples_every": 1}]
)
def test_looking_changes_no_bit_of_the_training(
    look: dict[str, Any], watched: tuple[Path, dict[str, Any]], toy_model_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "run"
    result = run_training(small(toy_model_folder, **look), other, show_progress=False)
    assert metrics(other) == metrics(watched[0])
    assert result["eval"] == watched[1]["eval"]
    ours, theirs = ((run / "ticket.safetensors").read_bytes() for run in (watched[0], other))
    assert ours == theirs


def test_the_scores_on_the_way_are_of_the_validation_split_only(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    problems = CopyLetter.problems

    def asking(self: CopyLetter, split: str) -> Any:
        asked.append(split)
        return problems(self, split)

    monkeypatch.setattr(CopyLetter, "problems", asking)
    settings = small(toy_model_folder, eval_every=1, steps=2)
    run_training(settings, tmp_path / "run", show_progress=False)
    assert asked.count("test") == 4, "to see how long its prompts are and say how many, before and after"
    assert asked[1:].count("validation") == 5, (
        "to see that there are any and how long they are, to say how many, and at each step"
    )


def test_a_line_is_the_score_of_that_steps_checkpoint_and_the_best_is_kept(
    watched: tuple[Path, dict[str, Any]], toy_model_folder: Path
) -> None:
    output, result = watched
    lines = StepLines(output / "eval.jsonl").read()
    assert [line["step"] for line in lines] == [3, 6]
    best = max(lines, key=lambda line: line["pass@1"])
    assert result["best_step"] == best["step"]
    kept = {int(path.name.removeprefix("step-")) for path in (output / "checkpoints").iterdir()}
    assert kept == {best["step"], 7}
    checkpoint = output / "checkpoints" / f"step-{best['step']}"
    settings = small(toy_model_folder, eval={"problems": 10, "samples": 2, "split": "validation"})
    evaluation, _ = measure(settings, None, Trained(checkpoint=checkpoint), None)
    assert {"step": best["step"], **evaluation.summary()} == best


def test_the_first_of_equal_bests_is_the_best() -> None:
    scores = {1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4}
    assert best_step([{"step": step, "pass@1": score} for step, score in scores.items()]) == 2
    assert best_step([]) is None


def test_a_task_without_validation_problems_is_refused_before_anything_is_written(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = CopyLetter.problems
    monkeypatch.setattr(
        CopyLetter,
        "problems",
        lambda self, split: problems(self, split).select(range(0 if split == "validation" else 40)),
    )
    with pytest.raises(ValueError, match="no validation problems"):
        run_training(small(toy_model_folder), tmp_path / "run", show_progress=False)
    assert not list(tmp_path.iterdir())


def test_samples_are_rollouts_with_their_answers_and_rewards(watched: tuple[Path, dict[str, Any]]) -> None:
    lines = StepLines(watched[0] / "samples.jsonl").read()
    assert [line["step"] for line in lines] == [step for step in (1, 2, 4, 6) for _ in range(ROLLOUTS)]
    train = CopyLetter().problems("train")
    answers = dict(zip(train["prompt"], train["answer"], strict=True))
    for line in lines:
        assert line["answer"] == answers[line["prompt"]]
        assert line["reward"] == pytest.approx(CopyLetter().score(line["completion"], line["answer"]))
    assert len({line["prompt"] for line in lines if line["step"] == 1}) == ROLLOUTS


def test_samples_are_bounded(toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "MOST_BYTES", 500)
    settings = small(toy_model_folder, samples_every=1, eval_every=None)
    run_training(settings, tmp_path / "run", show_progress=False)
    assert 500 <= (tmp_path / "run" / "samples.jsonl").stat().st_size < 1000
    long = {
        "prompt": [[{"role": "user", "content": "x" * 10**6}]],
        "completion": ["\ud800" + "y" * 10**6],
        "rewards": {"a": [0.0], "b": [1.0]},
        "extra": {},
    }
    (sample,) = rollouts(long, 4)
    assert (sample["answer"], sample["reward"]) == (None, 0.5)
    StepLines(tmp_path / "long.jsonl").append({"step": 1, **sample})  # a lone surrogate is written somehow
    assert (tmp_path / "long.jsonl").stat().st_size < 10_000
    assert StepLines(tmp_path / "long.jsonl").read()[0]["prompt"].startswith("user: xxx")


def test_measuring_leaves_the_random_state_alone(toy_model_folder: Path) -> None:
    import torch

    model, tokenizer = load_model(str(toy_model_folder))
    before = torch.get_rng_state()
    evaluate(model, tokenizer, CopyLetter(), EvalConfig(problems=4, samples=2))
    assert torch.equal(torch.get_rng_state(), before)
