"""Training passes that compute a group's prompt once, against passes that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_steps import assert_same_steps, recorded
from small_decoder import SMALL
from toy_task import TASK
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

import multiticket as mt
from multiticket.train import trainer as trainer_module
from multiticket.train.shared_groups import after_prompts, prompts_of
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


@pytest.mark.parametrize("arm", ["full", "ticket"])
@pytest.mark.parametrize(
    "config", [LlamaConfig(**SMALL), Qwen3Config(**SMALL, head_dim=8)], ids=["llama", "qwen3"]
)
def test_a_common_beginning_is_computed_once_with_the_same_gradients(config: Any, arm: str) -> None:
    beginning, tokens = [5, 6, 7, 8, 9, 10, 11, 12], 3
    asked = [beginning + own for own in ([1, 2], [3], [4, 2, 2, 1]) for _ in range(3)]
    ids, attention = _pass([2, 2, 2, 3, 3, 3, 0, 0, 0], asked, tokens)
    ids[:, -tokens:] = torch.arange(9 * tokens).view(9, -1) % 23
    found = prompts_of(ids, attention, tokens)
    assert found is not None

    def scores(shared: bool, model: Any) -> torch.Tensor:
        before = ids.shape[1] - tokens - 1
        if not shared:
            return model(input_ids=ids, attention_mask=attention).logits[:, before:-1].log_softmax(-1)
        seen: list[tuple[int, ...]] = []
        handle = model.model.layers[0].register_forward_pre_hook(
            lambda _, args: seen.append(tuple(args[0].shape[:2]))
        )
        continued = after_prompts(model, ids[:, :before], attention[:, :before], *found)
        logits = continued(input_ids=ids[:, before:], attention_mask=attention[:, before:]).logits
        handle.remove()
        assert seen == [(1, 7), (3, 4), (9, 4)]
        return logits[:, :-1].log_softmax(-1)

    results = []
    for shared in (True, False):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).double()
        trained = [*model.parameters()]
        if arm == "ticket":
            trained = mt.attach(model, mt.Mask.random(model, 0.5)).parameters()
        found_scores = scores(shared, model)
        found_scores[..., 5].square().sum().backward()
        results.append((found_scores.detach(), [parameter.grad for parameter in trained]))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)  # angles are in fp32
