"""Rollouts that are the same however many processes generate them, and settings to compare such runs under."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from multiticket.train.trainer import RLVRTrainer

GIVEN = [("ticket", "sgd"), ("ticket", "adamw_torch_fused"), ("full", "sgd"), ("lora", "sgd")]
"""Arms and optimisers."""
GROUP = 4


def said(prompt: list[int], place: int, step: int) -> list[int]:
    """What the policy is taken to answer: a function of prompt, place in the group and step, whoever generates it."""
    answer = hashlib.sha256(f"{prompt} {place} {step}".encode()).digest()
    return [2 + byte % 13 for byte in answer[:4]]


@contextmanager
def told(rank: int) -> Iterator[None]:
    """Within, RLVRTrainer takes its rollouts from `said`."""

    def completions(self: Any, contexts: Any, *_: Any, **__: Any) -> Any:
        first = rank * len(contexts)
        step = self.state.global_step
        return [said(list(ids), (first + i) % GROUP, step) for i, ids in enumerate(contexts)], None

    with mock.patch.object(RLVRTrainer, "completions", completions):
        yield


CALLS = ["0", "b", "<call>0</call>", "<call>1</call>", "<call>ab</call>", "<call>"]


def called(context: str, place: int) -> str:
    """What a `tiny_caller` is taken to answer: words, calls good and bad, an end or none; a function of its context."""
    draw = random.Random(f"{context} {place}")
    text = "".join(draw.choices(CALLS, [2, 2, 3, 3, 1, 1], k=draw.randrange(1, 4)))
    return text + "<end>" * (draw.random() < 0.8)


@contextmanager
def told_calls(rank: int) -> Iterator[None]:
    """Within, RLVRTrainer takes its turns from `called`. Those of a group differ by their place in the first turn, and
    from then on where their contexts do."""

    def completions(self: Any, contexts: Any, *_: Any, **__: Any) -> Any:
        most, tokenizer = self.args.max_completion_length, self.processing_class
        first, answers = rank * len(contexts), []
        for i, ids in enumerate(contexts):
            text = tokenizer.decode(ids)
            begins = text.count("<end>") == 1  # of the prompt
            place = self.state.global_step * GROUP + (first + i) % GROUP if begins else 0
            answers.append(list(tokenizer(text=called(text, place))["input_ids"])[:most])
        return answers, None

    with mock.patch.object(RLVRTrainer, "completions", completions):
        yield


def with_tools(folder: Path) -> dict[str, Any]:
    """Settings of a run on the doors of `toy_tools` and the `tiny_caller`, both in a folder."""
    return {
        **given("ticket", "sgd"),
        "task": f"toy_tools:by_environment@{folder / 'doors.jsonl'},environment=toy_tools:Door",
        "max_completion_tokens": 32,
        "rollouts": 16,
        "steps": 3,
        "eval": {"problems": 3, "samples": 1},
        "density": 0.5,
    }


def given(arm: str, optim: str) -> dict[str, Any]:
    """Settings under which the order of sums is not amplified: SGD, or Adam with a large epsilon."""
    rate = {"ticket": 0.5, "full": 0.05, "lora": 0.5}[arm] if optim == "sgd" else 1e-2
    return {
        "arm": arm,
        "learning_rate": rate,
        "weight_decay": 0.0,
        "eval_every": None,
        "grpo": {"optim": optim, "adam_epsilon": 1e-5},
    }
