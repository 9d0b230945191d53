"""What the trainer does in one step, against plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_task import TASK

from multiticket import config
from multiticket.mask import Mask
from multiticket.models import load_model
from multiticket.sparse import attach
from multiticket.tasks.judging import rows
from multiticket.train import plain_step
from multiticket.train.recipe import grpo_config
from multiticket.train.rewards import reward_function
from multiticket.train.trainer import RLVRTrainer

RATE = 3e-3


class Recording(RLVRTrainer):
    """Keeps the batch as it was scored, the batches as they were trained on, and the gradients before clipping."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.scored = super()._generate_and_score_completions(inputs)
        self.rewards = list(self._logs["rewards"]["reward"])
        return {key: value.clone() for key, value in self.scored.items()}

    def _clip_grad_norm(self, model: Any) -> Any:
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return super()._clip_grad_norm(model)


def _trainer(folder: Path, output: Path, arm: str = "full", kind: Any = Recording, **settings: Any) -> Any:
    run = config.build(
        {
            "arm": arm,
            "steps": 1,
            "rollouts": 32,
            "group": 8,
            "learning_rate": RATE,
            "clip_norm": 1e-2,
            **settings,
        }
    )
    model, tokenizer = load_model(str(folder))
    attachment = attach(model, Mask.random(model, density=run.density)) if arm == "ticket" else None
    return kind(
        model=model,
        reward_funcs=reward_function(TASK),
        args=grpo_config(run, output, TASK.max_completion_tokens),
        train_dataset=TASK.problems("train"),
        processing_class=tokenizer,
        attachment=attachment,
        kl_rollouts=run.kl_rollouts,
    )


def _log_probs(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of the completion tokens (rollouts, tokens), from the model's own logits."""
    return plain_step.log_probs(model, _rollouts(batch))


def _rollouts(batch: dict[str, Any]) -> plain_step.Rollouts:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return plain_step.Rollouts(ids, attention, batch["completion_mask"], [])


def _reference_step(folder: Path, batch: dict[str, Any], clip: float) -> tuple[Any, dict[str, torch.Tensor]]:
    """One step of the paper's recipe in plain PyTorch on a fresh base: the model after it, and its raw gradients."""
    model, _ = load_model(str(folder))
    mask = batch["completion_mask"]
    loss = plain_step.policy_gradient_loss(_log_probs(model, batch), batch["advantages"], mask)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
    )
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return model, gradients


def test_the_advantage_is_the_reward_minus_its_groups_mean(toy_model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(toy_model_folder, tmp_path)
    trainer.train()
    rewards = torch.tensor(trainer.rewards).view(4, 8)
    assert rewards.std(dim=1).max() > 0
    exact = rewards.double()
    expected = (exact - exact.mean(dim=1, keepdim=True)).flatten().float()
    assert torch.equal(trainer.scored["advantages"], expected)
    assert torch.equal(plain_step.advantages(rewards.flatten(), 8), expected)


@pytest.mark.parametrize("micro_batch", [32, 8])
def test_a_step_of_the_full_arm_is_the_recipe_in_plain_pytorch(
    toy_model_folder: Path, tmp_path: Path, micro_batch: int
) -> None:
    trainer = _trainer(toy_model_folder, tmp_path, micro_batch=micro_batch)
    trainer.train()
    expected, gradients = _reference_step(toy_model_folder, trainer.scored, clip=1e-2)

    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert norm > 2e-2, "the clipping must do something here"
    assert set(trainer.gradients) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(trainer.gradients[name], gradient, rtol=1e-4, atol=1e-6 * float(norm))
    # Adam's first step is a sign step: where a gradient is rounding noise, so is its sign.
    weights = dict(trainer.model.named_parameters())
    for name, parameter in expected.named_parameters():
        clear = gradients[name].abs() > 1e-4 * norm
        torch.testing.assert_close(weights[name][clear], parameter[clear], rtol=1e-5, atol=1e-7)


def test_a_step_of_a_ticket_trains_the_masked_part_of_the_same_gradient(
    toy_model_folder: Path, tmp_path: Path
) -> None:
    trainer = _trainer(toy_model_folder, tmp_path, arm="ticket", density=0.25, micro_batch=16)
    trainer.train()
    assert trainer.attachment is not None
    _, gradients = _reference_step(toy_model_folder, trainer.scored, clip=1e-2)
    base, _ = load_model(str(toy_model_folder))
    before = dict(base.named_parameters())
    trained = dict(trainer.model.named_parameters())
    values = dict(trainer.attachment.named_parameters())
    seen = 0
    for name in trainer.attachment.mask.names:
        places = trainer.attachment.mask.indices(name)
        (gradient,) = [g for n, g in trainer.gradients.items() if n.startswith(name)]
        torch.testing.assert_close(gradient, gradients[name].flatten()[places], rtol=1e-4, atol=1e-7)
        others = torch.ones(before[name].numel(), dtype=torch.bool)
        others[places] = False
        assert torch.equal(trained[name].flatten()[others], before[name].flatten()[others])
        assert torch.equal(trained[name].flatten()[places], values[name])
        seen += int((values[name] != before[name].flatten()[places]).sum())
    assert seen > 0.9 * trainer.attachment.nnz


def test_everything_trained_decays(toy_model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(toy_model_folder, tmp_path, arm="ticket", density=0.5)
    trainer.train()
    decayed, plain = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == 0.01
    assert not plain["params"]
    assert sum(p.numel() for p in decayed["params"]) == trainer.attachment.nnz  # type: ignore[union-attr]
    assert (decayed["betas"], decayed["lr"]) == ((0.9, 0.999), RATE)


def test_kl_is_the_k3_estimate_of_what_the_step_moved(toy_model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(toy_model_folder, tmp_path, kl_rollouts=32, clip_norm=1.0)
    trainer.train()
    base, _ = load_model(str(toy_model_folder))
    with torch.no_grad():
        log_ratio = _log_probs(trainer.model, trainer.scored) - _log_probs(base, trainer.scored)
    mask = trainer.scored["completion_mask"]
    expected = (((log_ratio.exp() - 1) - log_ratio) * mask).sum() / mask.sum()
    logged = trainer.state.log_history[0]["kl"]
    assert logged > 1e-5
    assert logged == pytest.approx(float(expected), rel=1e-3)


def test_kl_on_few_rollouts_estimates_the_exact_kl(toy_model_folder: Path, tmp_path: Path) -> None:
    """Over many rollouts k3 meets the KL over the whole vocabulary at the same contexts."""
    trainer = _trainer(toy_model_folder, tmp_path, rollouts=1280, group=32, kl_rollouts=1280, clip_norm=1.0)
    trainer.train()
    base, _ = load_model(str(toy_model_folder))
    batch = trainer.scored
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].shape[1]
    with torch.no_grad():
        before, after = (
            m(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1].log_softmax(-1)
            for m in (base, trainer.model)
        )
    exact = ((before.exp() * (before - after)).sum(-1) * batch["completion_mask"]).sum() / batch[
        "completion_mask"
    ].sum()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(float(exact), rel=0.1)


def test_epochs_differ_but_each_is_found_again(toy_model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(toy_model_folder, tmp_path)
    sampler = trainer._get_train_sampler()
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(set(orders[0])) == list(range(40))


def test_what_rounding_hides_is_logged(toy_model_folder: Path, tmp_path: Path) -> None:
    """Beside the same figure from the values' and weights' own bits before and after the step."""
    trainer = _trainer(toy_model_folder, tmp_path, arm="ticket", density=0.25, learning_rate=1e-4)
    trainer.model.to(torch.bfloat16)
    trainer.attachment.flush()  # type: ignore[union-attr]
    before = {n: v.detach().clone() for n, v in trainer.attachment.named_parameters()}  # type: ignore[union-attr]
    trainer.train()
    hidden = moved = 0
    for name, values in trainer.attachment.named_parameters():  # type: ignore[union-attr]
        changed = values.detach() != before[name]
        moved += int(changed.sum())
        hidden += int((changed & (values.detach().bfloat16() == before[name].bfloat16())).sum())
    assert 0.1 * moved < hidden < 0.9 * moved
    assert trainer.state.log_history[0]["hidden_by_rounding"] == pytest.approx(hidden / moved, abs=1e-4)


def test_rounding_hides_nothing_of_fp32_weights(toy_model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(toy_model_folder, tmp_path, arm="ticket", density=0.25)
    trainer.train()
    assert trainer.state.log_history[0]["hidden_by_rounding"] == 0


@pytest.mark.parametrize("arm", ["full", "ticket"])
def test_the_plain_step_learns_what_the_trainer_learns(arm: str, toy_model_folder: Path) -> None:
    """Twenty steps without TRL: the reward rises, every step moves the policy, and only what trains has moved."""
    model, tokenizer = load_model(str(toy_model_folder))
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask = Mask.random(model, density=0.25)
    attachment = attach(model, mask) if arm == "ticket" else None
    trained = model.parameters() if attachment is None else attachment.parameters()
    optimizer = torch.optim.AdamW(trained, lr=RATE if arm == "full" else 10 * RATE, weight_decay=0.01)
    problems = rows(TASK.problems("train"))
    found = [
        plain_step.plain_step(model, tokenizer, optimizer, TASK, problems[:16], seed=number)
        for number in range(20)
    ]
    rewards = [float(reward.mean()) for reward, _ in found]
    assert sum(rewards[-5:]) > 1.2 * sum(rewards[:5])
    assert all(kl.token > 0 for _, kl in found)
    if attachment is not None:
        for name in mask.names:
            moved = dict(model.named_parameters())[name].detach() != base[name]
            places = torch.zeros(moved.numel(), dtype=torch.bool)
            places[mask.indices(name)] = True
            assert not (moved.flatten() & ~places).any()


class _BySharedPrompts(Recording):
    """Counts the rows that went through `sample`, or leaves them to TRL."""

    shared = True
    sampled = 0

    def sample(self, contexts: Any) -> Any:
        found = super().sample(contexts) if self.shared else None
        self.sampled += len(found or ())
        return found


def test_completions_with_prompts_computed_once_are_trls_own_kind(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near temperature zero both say the same; at temperature 1, tokens as often."""
    said = {}
    for shared in (True, False):
        monkeypatch.setattr(_BySharedPrompts, "shared", shared)
        trainer = _trainer(
            toy_model_folder, tmp_path / str(shared), temperature=1e-4, rollouts=64, kind=_BySharedPrompts
        )
        trainer.train()
        assert trainer.sampled == (64 if shared else 0)
        said[shared] = [trainer.scored[part] for part in ("prompt_ids", "completion_ids", "completion_mask")]
    for ours, theirs in zip(said[True], said[False], strict=True):
        assert torch.equal(ours, theirs)


def test_tokens_are_sampled_as_often_as_trl_samples_them(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {}
    for shared in (True, False):
        monkeypatch.setattr(_BySharedPrompts, "shared", shared)
        trainer = _trainer(
            toy_model_folder, tmp_path / str(shared), rollouts=1024, group=64, kind=_BySharedPrompts
        )
        trainer.train()
        ids, mask = trainer.scored["completion_ids"], trainer.scored["completion_mask"].bool()
        counts[shared] = torch.bincount(ids[mask], minlength=16).double()
        counts[shared] = torch.cat([counts[shared], mask.sum(1).bincount(minlength=16).double()])
    spread = (counts[True] + counts[False]).sqrt()
    assert (
        (counts[True] - counts[False]).abs() <= 4.5 * spread * 1.5
    ).all()  # tokens of one completion hang together


@pytest.mark.parametrize(
    "grpo", [{"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.2}, {"repetition_penalty": 1.2}], ids=str
)
def test_what_truncates_the_distribution_is_left_to_trl(
    toy_model_folder: Path, tmp_path: Path, grpo: dict[str, Any]
) -> None:
    trainer = _trainer(toy_model_folder, tmp_path, grpo=grpo, kind=_BySharedPrompts)
    trainer.train()
    assert trainer.sampled == 0


def test_a_steps_seconds_are_told_by_phase(toy_model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(toy_model_folder, tmp_path, steps=2, micro_batch=8)
    trainer.train()
    for line in trainer.state.log_history[:2]:
        phases = {name: line[f"{name}_s"] for name in ("generate", "score", "train", "step", "kl")}
        assert all(seconds > 0 for seconds in phases.values())
        assert line["step_time"] <= sum(phases.values()) + 0.1
        assert "sync_s" not in line


@pytest.mark.parametrize("grpo", [{}, {"top_p": 0.5}], ids=["ours", "trl"])
def test_the_head_reads_contiguous_tokens_while_rollouts_are_generated(
    grpo: dict[str, Any], toy_model_folder: Path, tmp_path: Path
) -> None:
    """Of a slice, a CPU would copy a frozen head in bf16 for every rollout."""
    trainer = _trainer(toy_model_folder, tmp_path, rollouts=8, group=2, grpo=grpo)
    seen: list[bool] = []

    def look(_: Any, read: tuple[Any, ...], made: Any) -> None:
        if read[0].shape[1] == 1:  # what a training pass slices is another matter, and differs between TRLs
            seen.append(read[0].is_contiguous())

    trainer.model.lm_head.register_forward_hook(look)
    trainer.train()
    assert seen
    assert all(seen)


@pytest.mark.parametrize("reward", [0.2, 0.1, 1 / 3, 0.7])
@pytest.mark.parametrize("grpo", [{}, {"scale_rewards": "group"}], ids=["plain", "scaled"])
def test_equal_rewards_are_no_signal(
    reward: float,
    grpo: dict[str, Any],
    toy_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rewards that fp32 cannot hold exactly, of which fp32 makes another mean."""
    monkeypatch.setattr(type(TASK), "score", lambda self, completion, answer: reward)
    trainer = _trainer(toy_model_folder, tmp_path, rollouts=36, group=12, grpo=grpo)
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "reward" in line]
    assert line["frac_reward_zero_std"] == 1
    assert line["grad_norm"] == 0
    assert trainer.scored["advantages"].dtype == torch.float32
    assert not trainer.scored["advantages"].any()
    assert not plain_step.advantages(torch.full((36,), reward), 12).any()


def test_a_small_difference_of_rewards_is_a_signal(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(TASK), "score", lambda self, completion, answer: 0.2 + 1e-6 * completion.startswith(answer)
    )
    trainer = _trainer(toy_model_folder, tmp_path)
    trainer.train()
    assert trainer.scored["advantages"].any()
