"""One optimiser step of RLVR in plain PyTorch, on one screen; what `RLVRTrainer` has TRL do.

Left out: micro-batches, several ranks, a generation engine, conversations of several turns, the KL penalty, and the
search for a learning rate. Slow, and the measure of the trainer in its tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiticket import tasks
from multiticket.generate.completion import complete, stop_tokens
from multiticket.generate.prompts import prompt_texts
from multiticket.tasks import Problem
from multiticket.train.step_kl import Kept, StepKL, mean


@dataclass(frozen=True)
class Rollouts:
    """A group of completions of each problem, one after another."""

    ids: Tensor
    """(rollouts, prompt and completion) token ids, prompts padded on the left, completions on the right."""
    attention: Tensor
    """Of the same shape: 0 for padding."""
    loss_mask: Tensor
    """(rollouts, completion tokens): 1 for a token that the policy chose, its end of turn among them."""
    texts: list[str]


def plain_step(
    policy: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    task: Any,
    problems: Sequence[Problem],
    group: int = 8,
    clip_norm: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, StepKL]:
    """The rewards of the step's rollouts (rollouts,), and how far it moved the policy.

    Args:
        policy: a model of transformers. Where a mask is attached to it, the optimiser has the attachment's parameters,
            and its step writes them back.
        group: completions a problem.
    """
    rollouts = generate(policy, tokenizer, task, problems, group, seed)
    rewards = score(task, rollouts, problems, group)
    gain = advantages(rewards, group)
    before = log_probs(policy, rollouts)
    policy_gradient_loss(before, gain, rollouts.loss_mask).backward()
    step(optimizer, clip_norm)
    return rewards, measure(policy, rollouts, before)


def generate(
    policy: Any, tokenizer: Any, task: Any, problems: Sequence[Problem], group: int, seed: int
) -> Rollouts:
    """`group` completions of each problem, sampled at temperature 1."""
    prompts = [
        text
        for text in prompt_texts([problem.prompt for problem in problems], tokenizer, task)
        for _ in range(group)
    ]
    most = task.max_completion_tokens
    texts = complete(policy, tokenizer, prompts, most, temperature=1.0, seed=seed)
    end = stop_tokens(policy, tokenizer)[:1]
    before = [tokenizer(text=prompt)["input_ids"] for prompt in prompts]
    said = [(tokenizer(text=text, add_special_tokens=False)["input_ids"] + end)[:most] for text in texts]
    left, right = max(map(len, before)), max(map(len, said))
    pad = tokenizer.pad_token_id
    ids = [
        [pad] * (left - len(b)) + b + s + [pad] * (right - len(s)) for b, s in zip(before, said, strict=True)
    ]
    seen = [
        [0] * (left - len(b)) + [1] * (len(b) + len(s)) + [0] * (right - len(s))
        for b, s in zip(before, said, strict=True)
    ]
    attention = torch.tensor(seen, device=policy.device)
    return Rollouts(torch.tensor(ids, device=policy.device), attention, attention[:, left:], texts)


def score(task: Any, rollouts: Rollouts, problems: Sequence[Problem], group: int) -> Tensor:
    """Rewards (rollouts,), each in [0, 1], by the task's verifier."""
    asked = [problem for problem in problems for _ in range(group)]
    judged = tasks.judge(task, [[text] for text in rollouts.texts], asked)
    return torch.tensor([one.reward for one in judged], device=rollouts.ids.device)


def advantages(rewards: Tensor, group: int) -> Tensor:
    """A_i = r_i - mean of the r of its group; (rollouts,). GRPO without the division by the standard deviation."""
    groups = rewards.double().view(-1, group)  # in which the mean of equal rewards is that reward
    return (groups - groups.mean(dim=1, keepdim=True)).flatten().float()


def log_probs(policy: Any, rollouts: Rollouts) -> Tensor:
    """log p(token | what came before it), (rollouts, completion tokens)."""
    tokens = rollouts.loss_mask.shape[1]
    logits = policy(input_ids=rollouts.ids, attention_mask=rollouts.attention).logits[:, -tokens - 1 : -1]
    chosen = rollouts.ids[:, -tokens:, None]
    return logits.float().log_softmax(-1).gather(-1, chosen).squeeze(-1)


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, loss_mask: Tensor) -> Tensor:
    """-sum_t A log p_t / number of tokens: with one step a batch the importance ratio is 1, and nothing is clipped."""
    return -(advantages[:, None] * log_probs * loss_mask).sum() / loss_mask.sum()


def step(optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
    """Clip the gradient's norm over all that trains, step, and forget the gradient."""
    trained = [parameter for part in optimizer.param_groups for parameter in part["params"]]
    torch.nn.utils.clip_grad_norm_(trained, clip_norm)
    optimizer.step()  # an attachment's hook writes the values into the weights
    optimizer.zero_grad()


@torch.no_grad()
def measure(policy: Any, rollouts: Rollouts, before: Tensor) -> StepKL:
    """KL(before || after), estimated on the step's own rollouts."""
    tokens = rollouts.loss_mask.shape[1]
    kept = Kept.first(len(before), (rollouts.ids, rollouts.attention, tokens), before, rollouts.loss_mask)
    return mean(kept.sums(log_probs(policy, rollouts)))
