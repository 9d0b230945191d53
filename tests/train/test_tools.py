"""Tools and environments: the loop is TRL's, the environment's words are nobody's policy, and all of a run has it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import toy_tools
import transformers
from datasets import Dataset
from small_runs import made, metrics, small
from tiny_caller import TEMPLATE, save_tiny_caller

from multiticket import tasks
from multiticket.config import EvalConfig
from multiticket.evaluate.evaluation import evaluate
from multiticket.generate.completion import complete_ids
from multiticket.generate.prompts import rendered
from multiticket.models import load_model
from multiticket.train.callbacks import samples as samples_callback
from multiticket.train.multi_turn import rollout_function
from multiticket.train.rewards import reward_function
from multiticket.train.run import run_training
from multiticket.train.trl_compat import GRPOConfig, OpenTrainer


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_caller(tmp_path_factory.mktemp("caller"))


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_tools.doors(tmp_path_factory.mktemp("doors"))


def said(seen: Counter[str], context: list[int], tokenizer: Any) -> list[int]:
    """An answer that context and how often it was asked decide: words, calls good and bad, an end or none."""
    seen[str(context)] += 1
    draw = random.Random(f"{context} {seen[str(context)]}")
    parts = ["0", "b", "<call>0</call>", "<call>1</call>", "<call>ab</call>", "<call>"]
    text = "".join(draw.choices(parts, [2, 2, 3, 3, 1, 1], k=draw.randrange(1, 4)))
    return list(tokenizer(text=text)["input_ids"]) + [1] * (draw.random() < 0.8)


def batch(model: Any, tokenizer: Any, folder: Path, rounds: int | None, **given: Any) -> Any:
    """What a trainer learns from of its first step, with answers that are `said`, and the rollouts it logs."""
    seen: Counter[str] = Counter()

    def completions(self: Any, contexts: Any, *_: Any, **__: Any) -> Any:
        most = self.args.max_completion_length
        return [said(seen, list(ids), tokenizer)[:most] for ids in contexts], None

    settings = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=40,
        max_tool_calling_iterations=rounds,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    with mock.patch.object(OpenTrainer, "completions", completions):
        trainer = OpenTrainer(model=model.train(), args=settings, processing_class=tokenizer, **given)
        return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))), trainer


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 13), reason="reads calls in another way"
)
@pytest.mark.parametrize("rounds", [None, 1])
@pytest.mark.parametrize("environment", [True, False])
def test_the_loop_is_trls(
    caller: Path, doors: Path, tmp_path: Path, rounds: int | None, environment: bool
) -> None:
    model, tokenizer = load_model(str(caller))
    options = "" if rounds is None else f",max_tool_calling_iterations={rounds}"
    name = "Door" if environment else "length"
    options += "" if environment else ",tools=toy_tools:TOOLS"
    task = tasks.asked(tasks.get(f"toy_tools:{name}@{doors}{options}"), tokenizer)
    problems = rendered(task.problems("train"), tokenizer, task)
    ours, trainer = batch(
        model,
        tokenizer,
        tmp_path,
        None,
        reward_funcs=reward_function(task),
        train_dataset=problems,
        rollout_func=rollout_function(task, problems),
    )
    raw = task.problems("train")
    messages = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": prompt}] for prompt in raw["prompt"]],
            "answer": list(raw["answer"]),
            "code": [json.loads(one)["code"] for one in raw["metadata"]],
        }
    )
    given = (
        {"environment_factory": toy_tools.Door}
        if environment
        else {"tools": toy_tools.TOOLS, "reward_funcs": lambda completions, **_: [0.0] * len(completions)}
    )
    theirs, _ = batch(model, tokenizer, tmp_path, rounds, train_dataset=messages, **given)
    assert set(ours) >= {"prompt_ids", "completion_ids", "tool_mask", "advantages"}
    for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask"):
        assert ours[key].tolist() == theirs[key].tolist(), key
    assert 0 < (1 - ours["tool_mask"]).sum() < ours["completion_mask"].sum()
    if environment:
        assert ours["advantages"].tolist() == theirs["advantages"].tolist()
        assert ours["advantages"].abs().sum() > 0
    calls = trainer._metrics["train"]["tool_calls"][0]
    assert (calls > 0.2) if rounds is None else calls > 0
    words = [
        tokenizer.decode(ids[mask == 0])
        for ids, mask in zip(ours["completion_ids"], ours["tool_mask"], strict=True)
    ]
    heard = ("open", "shut", "error") if environment else ("+",)
    assert all(any(word in text for word in heard) for text in words if text.strip("<pad>"))
    assert not environment or all("call>" not in text for text in words)


def run_of(caller: Path, task: str, **more: Any) -> Any:
    return small(
        caller,
        task=task,
        rollouts=16,
        steps=3,
        samples_every=1,
        eval={"problems": 2, "samples": 1},
        eval_every=None,
        max_completion_tokens=32,
        density=0.5,
        **more,
    )


def test_a_run_with_an_environment_and_resuming_it(
    caller: Path, doors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_callback, "ROLLOUTS", 16)
    task = f"toy_tools:by_environment@{doors},environment=toy_tools:Door"
    whole = run_of(caller, task)
    result = run_training(whole, tmp_path / "whole", show_progress=False)
    lines = metrics(tmp_path / "whole")
    assert len(lines) == 3
    assert all(line["failures"] == 0 for line in lines)
    assert sum(line["tool_calls"] for line in lines) > 0.5
    assert any(line["tool_failures"] for line in lines)
    assert max(line["reward"] for line in lines) > 0
    assert result["eval"]["after"]["n"] == 2
    samples = [json.loads(line) for line in (tmp_path / "whole" / "samples.jsonl").read_text().splitlines()]
    assert all(re.fullmatch(r"\[press\]u:door \d+ of 2<end>\na:", one["prompt"]) for one in samples)
    assert any("t:{'error'" in one["completion"] for one in samples)
    assert any(one["reward"] > 0 for one in samples)
    run_training(
        run_of(caller, task).model_copy(update={"steps": 2}), tmp_path / "parts", show_progress=False
    )
    run_training(whole, tmp_path / "parts", resume=True, show_progress=False)
    once, twice = made(tmp_path / "whole"), made(tmp_path / "parts")
    for key in ("ticket.safetensors", "samples.jsonl", "eval-after.jsonl", "metrics"):
        assert once[key] == twice[key], key


def test_an_evaluation_runs_the_same_loop(caller: Path, doors: Path) -> None:
    model, tokenizer = load_model(str(caller))
    task = tasks.get(f"toy_tools:Door@{doors},max_completion_tokens=40")
    seen: Counter[str] = Counter()

    def scripted(model: Any, tokenizer: Any, contexts: Any, room: Any, *_: Any, **__: Any) -> list[list[int]]:
        return [said(seen, ids, tokenizer)[:most] for ids, most in zip(contexts, room, strict=True)]

    with mock.patch("multiticket.evaluate.evaluation.complete_ids", scripted):
        found = evaluate(model, tokenizer, task, EvalConfig(problems=3, samples=30))
    assert 0 < found.summary()["reward"] < 1
    assert any(
        "t:open" in one.greedy_completion or "t:shut" in one.greedy_completion for one in found.problems
    )
    for settings in (EvalConfig(problems=3, samples=3), EvalConfig(problems=3, samples=3, batch_size=2)):
        again = evaluate(model, tokenizer, task, settings)  # the model's own answers, in any batches
        assert [one.reward for one in again.problems] == [
            one.reward for one in evaluate(model, tokenizer, task, EvalConfig(problems=3, samples=3)).problems
        ]


def test_environments_are_made_once_and_reset_often(caller: Path, doors: Path) -> None:
    class Counted(toy_tools.Door):
        made = 0

    model, tokenizer = load_model(str(caller))
    with mock.patch.object(toy_tools, "Door", Counted):
        task = tasks.get(f"toy_tools:Door@{doors},max_completion_tokens=20")
        for _ in range(2):
            evaluate(model, tokenizer, task, EvalConfig(problems=3, samples=7, batch_size=16))
    assert Counted.made == 16  # two problems' completions at once


class TestRefusals:
    """In one sentence, before anything is written."""

    def refused(self, folder: Path, doors: Path, tmp_path: Path, **more: Any) -> str:
        task = f"toy_tools:Door@{doors}"
        with pytest.raises(ValueError, match=r"^[A-Z][^\n]*\.$") as error:
            run_training(run_of(folder, task, **more), tmp_path / "run", show_progress=False)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    def test_a_model_without_a_chat_template(self, doors: Path, tmp_path: Path) -> None:
        assert "no chat template" in self.refused(
            save_tiny_caller(tmp_path / "m", template=None), doors, tmp_path
        )

    def test_a_template_without_tools(self, doors: Path, tmp_path: Path) -> None:
        plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
        assert "cannot show them" in self.refused(save_tiny_caller(tmp_path / "m", plain), doors, tmp_path)

    def test_a_template_whose_calls_nobody_can_read(self, doors: Path, tmp_path: Path) -> None:
        said = self.refused(save_tiny_caller(tmp_path / "m", reads=False), doors, tmp_path)
        assert "response_template" in said

    def test_a_template_that_changes_calls_afterwards(self, doors: Path, tmp_path: Path) -> None:
        changing = "{{ messages | length }}" + TEMPLATE
        said = self.refused(save_tiny_caller(tmp_path / "m", changing), doors, tmp_path)
        assert "changes a call" in said

    def test_a_mask_of_rollouts(self, caller: Path, doors: Path, tmp_path: Path) -> None:
        assert "has none with tools" in self.refused(caller, doors, tmp_path, method="fisher")


def test_random_answers_call_the_tool(caller: Path) -> None:
    """What the tests above stand on: the tiny model's own answers have calls that can be read."""
    model, tokenizer = load_model(str(caller))
    context = list(tokenizer(text="[press]u:door 1<end>\na:")["input_ids"])
    texts = tokenizer.batch_decode(complete_ids(model, tokenizer, [context] * 64, 20, 1.0))
    assert sum("<call>1</call>" in text or "<call>0</call>" in text for text in texts) > 3
