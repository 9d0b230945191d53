"""The KL penalty's reference: the base bit for bit while training, the right loss, and no second model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import metrics
from toy_task import TASK
from transformers import PreTrainedModel

from multiticket import arms, config
from multiticket.arms.prepared import as_prepared
from multiticket.generate.products import fast_products
from multiticket.mask import Mask
from multiticket.models import load_model
from multiticket.sparse import Attachment, attach
from multiticket.train.recipe import grpo_config
from multiticket.train.rewards import reward_function
from multiticket.train.run import run_training
from multiticket.train.trainer import RLVRTrainer

BETA = 0.5
ARMS = ["ticket", "full", "lora"]


class Recording(RLVRTrainer):
    """Keeps every step's scored batch, policy and gradients, and what the reference was asked and said."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []
        self.policies: list[dict[str, torch.Tensor]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.asked: list[tuple[Any, torch.Tensor]] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        before = _weights(self.model)
        batch = super()._generate_and_score_completions(inputs)
        after = _weights(self.model)
        assert all(torch.equal(before[name], after[name]) for name in before), "the policy is back"
        self.policies.append(after)
        self.batches.append({k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)})
        return batch

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        asked = model is not None and model is self.ref_model
        output = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if asked:
            assert not output[0].requires_grad
            self.asked.append((args[:3], output[0].clone()))
        return output

    def _clip_grad_norm(self, model: Any) -> Any:
        self.gradients.append(
            {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        )
        return super()._clip_grad_norm(model)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _trainer(folder: Path, output: Path, arm: str, steps: int = 3, **settings: Any) -> Recording:
    run = config.build(
        {
            "arm": arm,
            "steps": steps,
            "rollouts": 32,
            "group": 8,
            "learning_rate": 3e-3 if arm == "full" else 3e-2,
            "beta": BETA,
            **({} if arm == "full" else {"density": 0.25}),
            **settings,
        }
    )
    model, tokenizer, attachment = _subject(folder, arm)
    return Recording(
        model=model,
        reward_funcs=reward_function(TASK),
        args=grpo_config(run, output, TASK.max_completion_tokens),
        train_dataset=TASK.problems("train"),
        processing_class=tokenizer,
        attachment=attachment,
        kl_rollouts=run.kl_rollouts,
        beta=run.beta,
        reference=run.reference,
    )


def _subject(folder: Path, arm: str) -> tuple[Any, Any, Attachment | None]:
    """A model ready to train, its tokenizer, and the attachment if it has one."""
    model, tokenizer = load_model(str(folder))
    if arm == "ticket":
        return model, tokenizer, attach(model, Mask.random(model, density=0.25))
    if arm == "lora":
        run = config.build({"arm": "lora", "density": 0.25})
        return arms.get("lora").prepare(model, tokenizer, run).model, tokenizer, None
    return model, tokenizer, None


def _log_probs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of the completion tokens (rollouts, tokens), from the model's own logits."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    return logits.log_softmax(-1).gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("arm", ARMS)
def test_the_reference_is_the_base_bit_for_bit_at_every_step(
    arm: str, toy_model_folder: Path, tmp_path: Path
) -> None:
    trainer = _trainer(toy_model_folder, tmp_path, arm)
    trainer.train()
    assert len(trainer.asked) == 3
    untrained = _trainer(toy_model_folder, tmp_path / "other", arm, beta=0.0)
    for arguments, said in trainer.asked:
        with torch.no_grad(), fast_products():  # as a step computes
            expected, *_ = untrained._get_per_token_logps_and_entropies(untrained.model, *arguments)
        assert torch.equal(said, expected)
    # and the plain base, without any of this around it, says the same
    base, _ = load_model(str(toy_model_folder))
    for batch in trainer.batches:
        with torch.no_grad():
            plain = _log_probs(base, batch)
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(batch["ref_per_token_logps"][mask], plain[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_the_gradient_is_that_of_two_plain_models(arm: str, toy_model_folder: Path, tmp_path: Path) -> None:
    """At the third step, where the policy has left the base: policy gradient + beta * k3 against the base."""
    trainer = _trainer(toy_model_folder, tmp_path, arm)
    trainer.train()
    batch, policy = trainer.batches[2], trainer.policies[2]
    plain, _, _ = _subject(toy_model_folder, arm)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(policy[name])
    base, _ = load_model(str(toy_model_folder))
    mask = batch["completion_mask"]
    now = _log_probs(plain, batch)
    with torch.no_grad():
        log_ratio = _log_probs(base, batch)
    log_ratio = log_ratio - now
    k3 = log_ratio.exp() - log_ratio - 1
    ratio = (now - now.detach()).exp()  # 1, but k3 * ratio has the gradient of the reverse KL
    ((-ratio * batch["advantages"].unsqueeze(1) + BETA * k3 * ratio) * mask).sum().div(mask.sum()).backward()

    expected = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert set(expected) == set(trainer.gradients[2])
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        torch.testing.assert_close(trainer.gradients[2][name], gradient, rtol=1e-3, atol=1e-4 * float(norm))
    penalty = float((k3 * mask).sum() / mask.sum())
    assert penalty > 1e-3, "the policy must have left the base"
    logged = trainer.state.log_history[2]
    assert logged["reference_kl"] == pytest.approx(penalty, rel=1e-3)
    assert logged["kl"] != pytest.approx(penalty, rel=1e-2)  # what the step moved, as without beta


@pytest.mark.parametrize("arm", ARMS)
def test_there_is_no_second_model(
    arm: str, toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is made or loaded, no adapter is added, and nothing beside the full arm's copy takes memory."""
    made: list[str] = []
    cloned: list[int] = []
    build, clone = PreTrainedModel.__init__, torch.Tensor.clone

    def building(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(type(self).__name__)
        build(self, *args, **kwargs)

    def cloning(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        cloned.append(tensor.numel())
        return clone(tensor, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "__init__", building)
    trainer = _trainer(toy_model_folder, tmp_path, arm)
    names = [name for name, _ in trainer.model.named_parameters()]
    monkeypatch.setattr(torch.Tensor, "clone", cloning)
    as_prepared(trainer.model, trainer.attachment).reference("base")
    monkeypatch.setattr(torch.Tensor, "clone", clone)
    assert len(made) == 2  # the causal model and the backbone within, loaded once
    assert not isinstance(trainer.ref_model, torch.nn.Module)
    assert not any(".ref." in name for name in names)
    full = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert sum(cloned) == (full if arm == "full" else 0)


def test_start_is_where_the_run_began_and_base_is_what_lies_below(toy_model_folder: Path) -> None:
    model, _ = load_model(str(toy_model_folder))
    ids = torch.randint(2, 16, (4, 12))
    base = model(ids).logits.detach()
    attachment = attach(model, Mask.random(model, density=0.25))
    _move(attachment, seed=0)
    start = model(ids).logits.detach()
    prepared = as_prepared(model, attachment)
    below, began = prepared.reference("base"), prepared.reference("start")
    _move(attachment, seed=1)
    now, values = model(ids).logits.detach(), [v.detach().clone() for v in attachment.parameters()]
    assert not torch.equal(base, start)
    assert not torch.equal(start, now)
    for _ in range(2):
        for reference, expected in ((below, base), (began, start)):
            with reference():
                output = model(ids).logits
            assert torch.equal(output, expected)
            assert not output.requires_grad
            assert torch.equal(model(ids).logits, now)
    assert all(torch.equal(a, b) for a, b in zip(attachment.parameters(), values, strict=True))


def test_start_comes_back_after_an_error(toy_model_folder: Path) -> None:
    model, _ = load_model(str(toy_model_folder))
    attachment = attach(model, Mask.random(model, density=0.25))
    began = as_prepared(model, attachment).reference("start")
    _move(attachment, seed=1)
    ids = torch.randint(2, 16, (4, 12))
    now = model(ids).logits.detach()
    with pytest.raises(RuntimeError, match="on purpose"), began():
        raise RuntimeError("on purpose")
    assert torch.equal(model(ids).logits, now)


@pytest.mark.parametrize("arm", ["full", "lora"])
def test_full_and_lora_start_at_the_base(arm: str, toy_model_folder: Path) -> None:
    model: Any = load_model(str(toy_model_folder))[0]
    ids = torch.randint(2, 16, (4, 12))
    base = model(ids).logits.detach()
    if arm == "lora":
        model = arms.get("lora").prepare(model, None, config.build({"arm": "lora", "lora_rank": 2})).model
    reference = as_prepared(model, None).reference("start")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    now = model(ids).logits.detach()
    assert not torch.equal(now, base)
    with reference():
        assert torch.equal(model(ids).logits, base)
    assert torch.equal(model(ids).logits, now)


def _move(attachment: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in attachment.parameters():
            values.add_(0.05 * torch.randn(values.shape, generator=generator))
    attachment.flush()


def test_a_penalty_holds_the_policy_near_the_base(toy_model_folder: Path, tmp_path: Path) -> None:
    far = _trainer(toy_model_folder, tmp_path / "weak", "ticket", steps=8, beta=1e-6)
    near = _trainer(toy_model_folder, tmp_path / "strong", "ticket", steps=8, beta=20.0)
    for trainer in (far, near):
        trainer.train()
    kls = [trainer.state.log_history[7]["reference_kl"] for trainer in (far, near)]
    assert kls[1] < kls[0] / 2


@pytest.mark.parametrize(("arm", "which"), [("ticket", "start"), ("full", "base"), ("lora", "base")])
def test_a_killed_run_with_a_penalty_resumes_to_the_same_bits(
    arm: str, which: str, toy_model_folder: Path, tmp_path: Path
) -> None:
    """The reference is still that of the beginning, not of the checkpoint."""
    run = config.build(
        {
            "task": "toy_task:TASK",
            "model": str(toy_model_folder),
            "arm": arm,
            "steps": 4,
            "rollouts": 80,
            "group": 8,
            "beta": 0.1,
            "reference": which,
            "learning_rate": "auto",
            "save_every": 2,
            "eval": {"problems": 2, "samples": 1},
        }
    )
    run_training(run, tmp_path / "whole", show_progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "killed" / "result.json").unlink()
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step-4")
    run_training(run, tmp_path / "killed", resume=True, show_progress=False)
    whole, killed = (metrics(tmp_path / name) for name in ("whole", "killed"))
    assert killed == whole
    assert whole[0]["reference_kl"] < 1e-9 < whole[3]["reference_kl"]
