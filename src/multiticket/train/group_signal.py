"""Whether rollouts say anything about the policy: a group whose rewards are all equal has no advantage, no gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ENOUGH = 0.1
"""The least share of groups with a signal among the first rollouts with which nothing is said against the task."""
HARDLY, NEARLY = 0.02, 0.98
"""Mean rewards below and above which a base fails or succeeds on nearly everything."""
STEPS = 20
"""How many steps the running share goes back."""


@dataclass(frozen=True)
class GroupSignal:
    """What a step's rewards are."""

    groups: int
    with_signal: int
    """Groups whose rewards are not all equal."""
    reward: float
    """The mean of all."""
    truncated: float
    """Share of completions cut off at the limit."""

    @classmethod
    def of(cls, rewards: Tensor, group: int, truncated: float) -> GroupSignal:
        """Of `rewards` (rollouts,), a `group` of each problem one after another."""
        each = rewards.view(-1, group)
        differ = int((each != each[:, :1]).any(dim=1).sum())
        return cls(len(each), differ, float(torch.nan_to_num(rewards).mean()), truncated)

    @property
    def share(self) -> float:
        return self.with_signal / self.groups


def first_words(signal: GroupSignal, tokens: int) -> str:
    """What is said of the first rollouts; where RL cannot learn from them, what to change.

    Args:
        tokens: the longest completion.
    """
    said = (
        f"{signal.with_signal:,} of the first {signal.groups:,} groups of rollouts have any signal "
        f"(rewards that differ); mean reward {signal.reward:.2f}"
    )
    if signal.share >= ENOUGH:
        return said
    said += ". RL cannot learn from groups whose rewards are all equal: "
    if signal.reward > NEARLY:
        return said + "the model succeeds nearly always, take a harder task or level."
    if signal.reward >= HARDLY:
        return said + "take larger groups (--group), or a higher temperature (--temperature)."
    said += "the model hardly ever succeeds, take an easier task or level, or show it solved problems (--examples 3)"
    if signal.truncated >= 0.5:
        said += (
            f", or let it say more (--max-completion-tokens {4 * tokens}): {signal.truncated:.0%} of the completions "
            f"were cut off at {tokens} tokens"
        )
    return said + "."


def running_share(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of groups with a signal over the newest lines of ``metrics.jsonl``; None where none tells."""
    told = [1 - line["no_signal"] for line in lines[-STEPS:] if line.get("no_signal") is not None]
    return sum(told) / len(told) if told else None
