"""Rollouts that are the same however many processes generate them, and settings to compare such runs under."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
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
