"""Whether rollouts say anything, and what a run says about that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multiticket import config
from multiticket.train.group_signal import STEPS, GroupSignal, first_words, running_share
from multiticket.train.run import run_training


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=1, max_size=9))
def test_a_group_has_signal_where_its_advantages_are_not_all_zero(rewards: list[list[float]]) -> None:
    signal = GroupSignal.of(torch.tensor(rewards).flatten(), 4, 0.0)
    assert signal.groups == len(rewards)
    assert signal.with_signal == sum(any(r != sum(group) / 4 for r in group) for group in rewards)
    assert signal.reward == pytest.approx(sum(map(sum, rewards)) / (4 * len(rewards)))


@pytest.mark.parametrize(
    ("signal", "said"),
    [
        (GroupSignal(8, 5, 0.3, 0.0), r"^5 of the first 8 groups .*; mean reward 0.30$"),
        (GroupSignal(8, 0, 0.0, 0.1), r"RL cannot learn .* an easier task or level, or show it .*3\)\.$"),
        (
            GroupSignal(64, 2, 0.001, 0.97),
            r"\(--max-completion-tokens 64\): 97% of .* cut off at 16 tokens\.$",
        ),
        (GroupSignal(8, 0, 1.0, 0.0), r"succeeds nearly always, take a harder task or level\.$"),
        (GroupSignal(8, 0, 0.5, 0.0), r"larger groups \(--group\), or a higher temperature"),
    ],
)
def test_what_is_said_of_the_first_rollouts(signal: GroupSignal, said: str) -> None:
    import re

    assert re.search(said, first_words(signal, 16))
    assert ("RL cannot learn" in first_words(signal, 16)) == (signal.share < 0.1)


def test_the_running_share_is_that_of_the_last_steps() -> None:
    assert running_share([]) is None
    assert running_share([{"no_signal": None}]) is None
    old, new = [{"no_signal": 1.0}] * 50, [{"no_signal": 0.25}] * (STEPS // 2)
    assert running_share(old + new) == pytest.approx(0.375)
    assert running_share(new) == 0.75


class _Flat:
    """A task that cannot be learned until so many of its completions were scored."""

    name = "flat"
    max_completion_tokens = 4

    def __init__(self, flat_until: float) -> None:
        self.flat_until = flat_until
        self.scored = 0

    def problems(self, split: str) -> Any:
        from datasets import Dataset

        return Dataset.from_dict({"prompt": [f"{n}=" for n in range(10, 30)], "answer": ["a"] * 20})

    def score(self, completion: str, answer: str) -> float:
        self.scored += 1
        return completion.count(answer) / max(len(completion), 1) if self.scored > self.flat_until else 0.0

    def correct(self, completion: str, answer: str) -> bool:
        return False


def _run(
    folder: Path, output: Path, flat_until: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from multiticket import tasks

    task = _Flat(flat_until)
    monkeypatch.setattr(tasks, "get", lambda name: task)
    settings = config.build(
        {
            "task": "flat",
            "model": str(folder),
            "density": 0.1,
            "steps": 4,
            "rollouts": 32,
            "group": 8,
            "eval": {"problems": 4, "samples": 1},
        }
    )
    result = run_training(settings, output)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return result, lines


def test_auto_waits_for_signal_and_says_so(
    toy_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluated = 4 * 2  # greedy and sampled
    result, lines = _run(toy_model_folder, tmp_path / "run", evaluated + 2 * 32, monkeypatch)
    said = capsys.readouterr().err
    assert "0 of the first 4 groups of rollouts have any signal" in said
    assert "RL cannot learn" in said
    assert said.count("auto waits for a step with signal: all groups of step 1 are without") == 1
    assert "learning_rate auto: step 3 has signal, and gave" in said
    assert [line["no_signal"] for line in lines[:2]] == [1.0, 1.0]
    assert lines[2]["no_signal"] < 1
    shares = [1 - line["no_signal"] for line in lines]
    for step, line in enumerate(lines, 1):
        assert line["signal"] == pytest.approx(sum(shares[:step]) / step)
    assert result["no_signal"] == pytest.approx(1 - sum(shares) / 4)


def test_a_run_with_signal_says_how_much_and_no_more(
    toy_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, lines = _run(toy_model_folder, tmp_path / "run", 0, monkeypatch)
    said = capsys.readouterr().err
    groups = round(4 * (1 - lines[0]["no_signal"]))
    assert f"{groups} of the first 4 groups of rollouts have any signal" in said
    assert groups > 0
    assert "RL cannot learn" not in said
    assert "auto waits" not in said
