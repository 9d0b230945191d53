"""Streamed gradients of a language model's own completions, against one backward pass at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_task import TASK, CopyLetter

from multiticket import tasks
from multiticket.mask import Mask, masked_candidates
from multiticket.models import load_model
from multiticket.research.theory.control_masks import control_mask, settings
from multiticket.research.theory.fisher import (
    Measured,
    Sampling,
    mean_over_seeds,
    measured_on,
    spectrum,
    subspaces,
)
from multiticket.research.theory.gram import grams
from multiticket.research.theory.rollouts import advantage, log_prob, sample_rollouts


@pytest.fixture(scope="module")
def loaded(toy_model_folder: Path) -> tuple[Any, Any]:
    return load_model(str(toy_model_folder))


def _measured(
    loaded: tuple[Any, Any], folder: Path, gradient: str = "policy", memory: int = 2**30
) -> Measured:
    sampling = Sampling(str(folder), "toy_task:TASK", gradient, "validation", 6, 4, 0, memory)
    return measured_on(sampling, *loaded, TASK)


def test_against_plain_backward_passes(loaded: tuple[Any, Any], toy_model_folder: Path) -> None:
    model, _ = loaded
    found = _measured(loaded, toy_model_folder, "score")
    rows = []
    for rollout in found.rollouts:
        model.zero_grad()
        ids = torch.tensor([rollout.ids])
        said = ids[0, 3:, None]
        model(input_ids=ids).logits[0, 2:-1].log_softmax(-1).gather(1, said).sum().backward()
        rows.append(torch.cat([weight.grad.reshape(-1) for weight in masked_candidates(model).values()]))
    model.zero_grad()
    plain = torch.stack(rows).double()
    torch.testing.assert_close(grams(found.gradients).full, plain @ plain.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [3, 40])
def test_blocks_change_nothing_but_rounding(
    parts: int, loaded: tuple[Any, Any], toy_model_folder: Path
) -> None:
    mask = Mask.random(loaded[0], 0.05)
    whole = _measured(loaded, toy_model_folder)
    memory = 4 * len(whole.rollouts) * whole.gradients.numel // parts
    streamed = _measured(loaded, toy_model_folder, memory=memory)
    first, second = grams(whole.gradients, [mask]), grams(streamed.gradients, [mask])
    torch.testing.assert_close(first.full, second.full, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(first.masked[0], second.masked[0], rtol=1e-5, atol=1e-7)


def test_policy_gradients_are_scores_times_advantages(
    loaded: tuple[Any, Any], toy_model_folder: Path
) -> None:
    policy, score = (_measured(loaded, toy_model_folder, kind) for kind in ("policy", "score"))
    kept = [i for i, rollout in enumerate(score.rollouts) if rollout.advantage]
    assert len(policy.rollouts) == len(kept)
    advantage = torch.tensor([rollout.advantage for rollout in policy.rollouts], dtype=torch.float64)
    expected = grams(score.gradients).full[kept][:, kept] * torch.outer(advantage, advantage)
    torch.testing.assert_close(grams(policy.gradients).full, expected, rtol=1e-4, atol=1e-6)


def test_scores_have_mean_zero() -> None:
    """E[grad log p] = 0 over the policy's own completions, also through sampling, tokenising and the end token."""
    model, tokenizer = load_model("tiny-qwen2")
    rollouts = sample_rollouts(model, tokenizer, tasks.get("arithmetic"), 1, 800)
    bias = model.model.norm.weight
    rows = torch.stack([torch.autograd.grad(log_prob(model, rollout), bias)[0] for rollout in rollouts])
    z = rows.mean(0) / (rows.std(0) / len(rows) ** 0.5)
    assert float(z.square().mean()) == pytest.approx(1, abs=0.7)
    assert float(z.abs().max()) < 4.5


def test_spectrum_and_subspaces(loaded: tuple[Any, Any], toy_model_folder: Path) -> None:
    found = _measured(loaded, toy_model_folder)
    result = spectrum(found, 3)
    assert result == spectrum(_measured(loaded, toy_model_folder), 3)
    samples = result["samples"]
    assert 1 <= result["effective_rank"]["participation"] <= result["effective_rank"]["entropy"] <= samples
    assert sum(share["energy"] for share in result["energy"].values()) == pytest.approx(1)
    assert sum(share["parameters"] for share in result["energy"].values()) == pytest.approx(1)
    for vector in result["leading"]:
        assert vector["all"]["energy"] == pytest.approx(1, rel=1e-4)
    kept = subspaces(found, ["random", "last-layer", "embeddings", "fisher"], [1.0, 0.2], 2, 3)
    by_key = {(row["mask"], row["density"]): row for row in mean_over_seeds(kept["masks"])}
    everything = by_key["random", 1.0]
    assert everything["energy"] == pytest.approx(1)
    assert everything["frobenius"] == pytest.approx(0, abs=1e-6)
    assert everything["predicted_frobenius"] == pytest.approx(0, abs=1e-6)
    assert everything["overlap"] == pytest.approx(1)
    assert by_key["fisher", 0.2]["energy"] > by_key["random", 0.2]["energy"]
    assert ("embeddings", 1.0) not in by_key
    assert any("do not fit" in row["reason"] for row in kept["refused"])


def test_control_masks_are_those_of_runs(loaded: tuple[Any, Any], toy_model_folder: Path) -> None:
    config = settings("last-layer", 0.1, 3, str(toy_model_folder), "toy_task:TASK")
    assert (config.method, config.mask_options, config.seed) == ("layers", {"layers": "last"}, 3)
    mask = control_mask(*loaded, config)
    assert isinstance(mask, Mask)
    assert all(".1." in name for name in mask.names)
    with pytest.raises(ValueError, match="no mask 'middle'"):
        settings("middle", 0.1, 0, "tiny-qwen2", "arithmetic")


def test_a_policy_without_advantages(loaded: tuple[Any, Any], toy_model_folder: Path) -> None:
    sampling = Sampling(str(toy_model_folder), "toy_task:TASK", "policy", "validation", 3, 1, 0, 2**30)
    with pytest.raises(ValueError, match="No completion has an advantage"):
        measured_on(sampling, *loaded, TASK)


class CopyTwice(CopyLetter):
    """Two turns: the environment says "12=" between the answers."""

    name = "copy_twice"
    turns = 2

    def reply(self, completions: list[str], answer: str) -> str | None:
        return "12=" if len(completions) == 1 else None

    def score_turns(self, completions: list[str], answer: str) -> float:
        return sum(map(len, completions)) / 8

    def correct_turns(self, completions: list[str], answer: str) -> bool:
        return False


def test_conversations(loaded: tuple[Any, Any]) -> None:
    """What the environment says between two answers is context: in the sequence, and not the model's."""
    model, tokenizer = loaded
    task = CopyTwice()
    prompts = task.problems("validation")["prompt"]
    endings: list[bool] = []
    for rollout in sample_rollouts(model, tokenizer, task, 4, 4):
        turns_said = [token for token, own in zip(rollout.ids, rollout.generated, strict=True) if not own]
        text = tokenizer.decode(turns_said, skip_special_tokens=True)
        assert text.startswith(prompts[rollout.problem])
        assert text.endswith("12=")
        assert rollout.generated[-1]
        said = tokenizer.decode(
            [token for token, own in zip(rollout.ids, rollout.generated, strict=True) if own],
            skip_special_tokens=True,
        )
        assert rollout.reward == len(said) / 8
        ends = [own for token, own in zip(rollout.ids, rollout.generated, strict=True) if token == 1]
        endings += ends
    assert True in endings  # by the model
    assert False in endings  # by the environment, where an answer was cut off


@pytest.mark.parametrize("reward", [0.0, 0.1, 0.2, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("group", [2, 5, 7, 12])
def test_equal_rewards_have_no_advantage(reward: float, group: int) -> None:
    assert advantage(reward, [reward] * group) == 0.0
    assert advantage(1.0, [1.0] + [0.0] * (group - 1)) == pytest.approx(1 - 1 / group)
