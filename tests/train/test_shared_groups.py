"""Training passes that compute a group's prompt once, against passes that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_steps import assert_same_steps, recorded
from toy_task import TASK

from multiticket.train import trainer as trainer_module
from multiticket.train.shared_groups import prompts_of
from multiticket.train.trl_compat import SCORES_BY_CALLING


def _pass(pads: list[int], prompts: list[list[int]], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[0] * pad + prompt + [7] * tokens for pad, prompt in zip(pads, prompts, strict=True)])
    attention = torch.ones_like(ids)
    for row, pad in enumerate(pads):
        attention[row, :pad] = 0
    return ids, attention


def test_different_prompts_are_found_in_any_order() -> None:
    asked = [[1, 2, 3, 4, 5], [0, 2, 3, 4, 5], [2, 3, 4, 5], [1, 2, 3, 4, 5], [2, 3, 4, 5], [1, 2, 3, 4, 5]]
    ids, attention = _pass([0, 0, 1, 0, 1, 0], asked, 1)
    found = prompts_of(ids, attention, 1)
    assert found is not None
    first, which = found
    assert len(first) == 3  # padding with 0 is not the token 0
    assert sorted(first.tolist()) == [0, 1, 2]
    for row in range(6):
        alike = first[which[row]]
        assert torch.equal(ids[alike], ids[row])
        assert torch.equal(attention[alike], attention[row])


def test_nothing_is_shared_where_that_does_not_pay() -> None:
    same = _pass([0] * 4, [[1, 2, 3]] * 4, 20)
    assert prompts_of(*same, 20) is None  # 4 * 21 + 2 tokens of 4 * 23
    other = _pass([0] * 4, [[row, 2, 3] for row in range(4)], 1)
    assert prompts_of(*other, 1) is None
    single = _pass([0] * 4, [[1]] * 4, 1)
    assert prompts_of(*single, 1) is None


@pytest.mark.skipif(not SCORES_BY_CALLING, reason="TRL 1.14 asks a model's backbone for log-probabilities")
@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
def test_a_step_is_the_same_with_and_without(
    arm: str, toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, gradients, KL and reference KL: all that asks for log-probabilities."""
    found: dict[bool, Any] = {}
    for shared in (True, False):
        passes: list[bool] = []

        def asking(
            ids: Any, attention: Any, tokens: int, shared: bool = shared, passes: list[bool] = passes
        ) -> Any:
            answer = prompts_of(ids, attention, tokens) if shared else None
            passes.append(answer is not None)
            return answer

        monkeypatch.setattr(trainer_module, "prompts_of", asking)
        trainer = recorded(toy_model_folder, tmp_path / f"{shared}", TASK, arm, beta=0.1)
        assert passes == [shared] * len(passes)
        assert len(passes) == 6  # of two steps each: reference, training pass, KL
        found[shared] = trainer
    ours, theirs = found[True], found[False]
    assert torch.equal(ours.scored["completion_ids"], theirs.scored["completion_ids"])
    logged = ("loss", "grad_norm", "entropy", "kl", "kl_per_completion", "reference_kl")
    assert_same_steps(ours, theirs, logged)
