"""Training passes without a graph for rollouts that have no gradient, against passes with one for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_steps import assert_same_steps, recorded
from toy_task import CopyLetter

from multiticket.train import trainer as trainer_module
from multiticket.train.flat_groups import in_two_passes, with_gradient


class HalfFlat(CopyLetter):
    """Every completion of a problem whose letter is b is worth the same."""

    def score(self, completion: str, answer: str) -> float:
        return 0.5 if answer == "b" else super().score(completion, answer)


class AllFlat(CopyLetter):
    def score(self, completion: str, answer: str) -> float:
        return 0.5


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many rollouts of each training pass had a graph; None where all had."""
    seen: list[int | None] = []

    def watched(advantages: torch.Tensor) -> Any:
        found = with_gradient(advantages)
        seen.append(None if found is None else int(found.sum()))
        return found

    monkeypatch.setattr(trainer_module, "with_gradient", watched)
    return seen


def test_rollouts_with_an_advantage_have_a_gradient() -> None:
    found = with_gradient(torch.tensor([0.0, -0.5, 0.5, 0.0]))
    assert found is not None
    assert found.tolist() == [False, True, True, False]
    of_tokens = with_gradient(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert of_tokens is not None
    assert of_tokens.tolist() == [False, True, False]


def test_one_stands_for_all_where_none_has() -> None:
    found = with_gradient(torch.zeros(3))
    assert found is not None
    assert found.tolist() == [True, False, False]


def test_all_go_together_where_that_is_as_fast() -> None:
    assert with_gradient(torch.ones(20)) is None
    nearly = torch.ones(20)
    nearly[7] = 0
    assert with_gradient(nearly) is None
    assert with_gradient(torch.zeros(1)) is None


def test_two_passes_keep_the_order() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    given = torch.arange(5.0)[:, None]
    learning = torch.tensor([False, True, False, True, False])
    scores, nothing = in_two_passes(lambda rows: (weight * given[rows], None), learning)
    assert nothing is None
    assert torch.equal(scores.detach(), 2 * given)
    scores.sum().backward()
    assert weight.grad == 1 + 3


@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
@pytest.mark.parametrize("loss", ["dapo", "grpo", "sapo", "cispo"])
def test_a_step_is_the_same_with_and_without(
    arm: str,
    loss: str,
    toy_model_folder: Path,
    tmp_path: Path,
    parts: list[int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"grpo": {"loss_type": loss}}
    ours = recorded(toy_model_folder, tmp_path / "ours", HalfFlat(), arm, **settings)
    assert len(parts) == 2
    assert any(some is not None and 1 < some < 64 for some in parts)
    monkeypatch.setattr(trainer_module, "with_gradient", lambda advantages: None)
    theirs = recorded(toy_model_folder, tmp_path / "theirs", HalfFlat(), arm, **settings)
    assert_same_steps(ours, theirs, ("loss", "grad_norm", "entropy", "kl", "kl_per_completion", "reward"))


@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
def test_a_step_without_any_signal_has_gradients_of_zero(
    arm: str, toy_model_folder: Path, tmp_path: Path, parts: list[int | None]
) -> None:
    trainer = recorded(toy_model_folder, tmp_path, AllFlat(), arm)
    assert parts == [1, 1]
    assert trainer.gradients
    assert all(not gradient.any() for gradient in trainer.gradients.values())


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"grpo": {"entropy_coef": 0.01}}])
def test_what_else_has_a_gradient_keeps_all_rollouts(
    settings: dict[str, Any], toy_model_folder: Path, tmp_path: Path, parts: list[int | None]
) -> None:
    """A KL penalty and an entropy bonus act on rollouts without an advantage too."""
    if "grpo" in settings:
        from trl import GRPOConfig

        if not hasattr(GRPOConfig, "entropy_coef"):
            pytest.skip("this TRL has no entropy bonus")
    recorded(toy_model_folder, tmp_path, HalfFlat(), **settings)
    assert parts == []
