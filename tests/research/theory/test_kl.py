"""KL on distributions whose KL is known, and between the states of runs."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy_task import TASK

from multiticket.models import load_model
from multiticket.research.theory.kl import kl_between, summarise, token_kl
from multiticket.research.theory.rollouts import Rollout, sample_rollouts
from multiticket.research.theory.states import find_state, states_of_run
from multiticket.research.theory.trajectory import Contexts, kl_of_run, kl_of_states

CONTEXTS = Contexts("validation", 5, 3, 0)


def test_bernoulli() -> None:
    p, q = torch.tensor([0.2, 0.8]).double(), torch.tensor([0.5, 0.5]).double()
    expected = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    shift = torch.tensor([[0.0], [300.0]])  # logits have no origin
    assert token_kl(p.log() + shift, q.log() - shift).tolist() == pytest.approx([expected, expected])


def test_never_below_zero_and_zero_for_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("multiticket.research.theory.kl.CHUNK", 350)  # seven rows
    logits = torch.randn(100, 50) * 20
    assert not token_kl(logits, logits).any()
    assert not token_kl(logits, logits + 5).abs().gt(1e-12).any()
    assert (token_kl(logits, torch.randn(100, 50)) > 0).all()


def test_words_without_a_chance() -> None:
    impossible, fair = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]])
    assert token_kl(impossible, fair).item() == pytest.approx(math.log(2))
    assert token_kl(fair, impossible).item() == math.inf


def test_small_step_is_half_the_fisher_norm() -> None:
    """KL(p || p + d) = d^T F d / 2 for logits, F = diag(p) - p p^T; far below what fp32 could tell from 0."""
    torch.manual_seed(0)
    logits, step = torch.randn(1, 30, dtype=torch.float64), 1e-5 * torch.randn(1, 30, dtype=torch.float64)
    p = logits.softmax(-1)[0]
    fisher = torch.diag(p) - torch.outer(p, p)
    expected = float(step[0] @ fisher @ step[0] / 2)
    assert token_kl(logits, logits + step).item() == pytest.approx(expected, rel=1e-3)


def test_intervals_take_problems_as_the_unit() -> None:
    rollouts = [Rollout(i // 2, (0, 1), (False, True), 0.0, 0.0) for i in range(6)]
    found = summarise(rollouts, [1.0, 3.0, 2.0, 2.0, 5.0, 5.0], [1, 1, 2, 2, 1, 1], 5.0)
    assert found.completion == pytest.approx(3)
    assert found.token == pytest.approx(18 / 8)
    deviation = math.sqrt(((2 - 3) ** 2 + (2 - 3) ** 2 + (5 - 3) ** 2) / 2 / 3)
    assert found.completion_interval[1] - 3 == pytest.approx(1.959964 * deviation)
    assert found.completions == 6
    assert found.tokens == 8


class Markov(nn.Module):
    """A policy whose next word depends on the last one: logits (vocabulary, vocabulary)."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits.double())

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def test_completions_of_a_markov_chain() -> None:
    """Sums over the model's own tokens only, whatever is batched, at the temperature that is asked for."""
    torch.manual_seed(0)
    before, after = Markov(torch.randn(4, 4)), Markov(torch.randn(4, 4))
    at = token_kl(before.table.detach() / 2, after.table.detach() / 2)
    rollouts = [
        Rollout(0, (1, 2, 3, 0), (False, True, True, True), 1.0, 0.0),
        Rollout(1, (2, 2, 1, 0), (False, True, False, True), 1.0, 0.0),
        Rollout(2, (3, 0), (False, True), 1.0, 0.0),
    ]
    sums = [at[1] + at[2] + at[3], at[2] + at[1], at[3]]
    for tokens in (1, 64):
        found = kl_between(before, after, rollouts, 2.0, tokens)
        assert found.completion == pytest.approx(float(sum(sums) / 3))
        assert found.token == pytest.approx(float(sum(sums) / 6))
        assert found.largest_token == pytest.approx(float(at[[1, 2, 3]].max()))


def test_mean_over_own_samples_is_the_kl_of_sequences() -> None:
    """Against the sum over all sequences of two words: what a mean over sampled contexts estimates without bias."""
    torch.manual_seed(1)
    before, after = Markov(torch.randn(3, 3)), Markov(torch.randn(3, 3))
    p, q = before.table.detach().log_softmax(-1), after.table.detach().log_softmax(-1)
    joint_p, joint_q = p[0][:, None] + p, q[0][:, None] + q
    exact = float((joint_p.exp() * (joint_p - joint_q)).sum())
    drawn = torch.multinomial(joint_p.exp().reshape(-1), 4000, replacement=True)
    rollouts = [
        Rollout(i, (0, int(pair) // 3, int(pair) % 3), (False, True, True), 0.0, 0.0)
        for i, pair in enumerate(drawn)
    ]
    found = kl_between(before, after, rollouts)
    low, high = found.completion_interval
    assert low < exact < high
    assert found.completion == pytest.approx(exact, rel=0.05)


def test_rollouts(toy_model_folder: Path) -> None:
    model, tokenizer = load_model(str(toy_model_folder))
    found = sample_rollouts(model, tokenizer, TASK, 4, 3)
    assert [rollout.problem for rollout in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert found == sample_rollouts(model, tokenizer, TASK, 4, 3)
    assert found[:6] == sample_rollouts(model, tokenizer, TASK, 2, 3)
    assert found != sample_rollouts(model, tokenizer, TASK, 4, 3, seed=1)
    for rollout in found:
        group = [other.reward for other in found if other.problem == rollout.problem]
        assert rollout.advantage == pytest.approx(rollout.reward - sum(group) / 3)
        assert not any(rollout.generated[:3])  # the prompt
        assert all(rollout.generated[3:])
        assert 1 <= len(rollout.ids) - 3 <= 4
    with pytest.raises(ValueError, match="40 problems, not 41"):
        sample_rollouts(model, tokenizer, TASK, 41, 1)
    assert sample_rollouts(model, tokenizer, TASK, 0, 1) == sample_rollouts(model, tokenizer, TASK, 40, 1)


@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
def test_states_of_a_run(arm: str, toy_runs: dict[str, Path]) -> None:
    """The last checkpoint and what the run made are one state; the steps differ from the base and from each other."""
    run = toy_runs[arm]
    names = [state.name for state in states_of_run(run)]
    assert names == ["base", "step-2", "step-4"]
    found = kl_of_run(run, CONTEXTS)
    first, last = found["states"]
    assert first["previous"] == "base"
    assert last["previous"] == "step-2"
    assert first["from_base"] == first["from_previous"]
    assert first["from_base"]["completion"] > 0
    assert 0 < last["from_previous"]["completion"] < math.inf
    assert found == kl_of_run(run, CONTEXTS)
    checkpoint = str(run / "checkpoints" / "step-4")
    same = kl_of_states(checkpoint, str(run), None, CONTEXTS)["kl"]
    assert same["completion"] == pytest.approx(
        0, abs=1e-10
    )  # an adapter is merged, so not quite the same weights
    apart = kl_of_states(str(run / "checkpoints" / "step-2"), str(run), None, CONTEXTS)["kl"]
    assert apart["completion"] == pytest.approx(last["from_previous"]["completion"])


def test_state_of_a_ticket_file(toy_runs: dict[str, Path]) -> None:
    run = toy_runs["ticket"]
    found = kl_of_states(str(run), str(run / "ticket.safetensors"), None, CONTEXTS)
    assert found["task"] == "toy_task:TASK"
    assert found["kl"]["completion"] == 0


def test_folders_without_states(tmp_path: Path, toy_runs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        states_of_run(tmp_path)
    unfinished = tmp_path / "run"
    (unfinished / "checkpoints" / "partial-2").mkdir(parents=True)
    shutil.copy(toy_runs["full"] / "config.json", unfinished)
    (unfinished / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="no checkpoint and is not finished"):
        states_of_run(unfinished)
    with pytest.raises(ValueError, match="not finished: give one of its checkpoints"):
        find_state(str(unfinished))
    with pytest.raises(ValueError, match="not a checkpoint"):
        find_state(str(unfinished / "checkpoints" / "partial-2"))
