"""A trainer of a toy model that keeps what a step was: its scored batch, and its gradients before clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from multiticket import arms, config
from multiticket.models import load_model
from multiticket.train.recipe import grpo_config
from multiticket.train.rewards import reward_function
from multiticket.train.trainer import RLVRTrainer


class Recording(RLVRTrainer):
    """Keeps the batch as it was scored and the gradients before clipping."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.scored = super()._generate_and_score_completions(inputs)
        return {key: value.clone() for key, value in self.scored.items()}

    def _clip_grad_norm(self, model: Any) -> Any:
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return super()._clip_grad_norm(model)


def recorded(folder: Path, output: Path, task: Any, arm: str = "ticket", **settings: Any) -> Recording:
    """A trainer after its two steps."""
    run = config.build(
        {
            "arm": arm,
            "model": str(folder),
            "steps": 2,
            "rollouts": 64,
            "group": 16,
            "learning_rate": 3e-3,
            "density": 1.0 if arm == "full" else 0.1,
            **settings,
        }
    )
    model, tokenizer = load_model(str(folder))
    torch.manual_seed(0)
    prepared = arms.get(arm).prepare(model, tokenizer, run)
    trainer = Recording(
        model=prepared.model,
        reward_funcs=reward_function(task),
        args=grpo_config(run, output, task.max_completion_tokens),
        train_dataset=task.problems("train"),
        processing_class=tokenizer,
        attachment=prepared.attachment,
        kl_rollouts=run.kl_rollouts,
        beta=run.beta,
    )
    trainer.train()
    return trainer


def assert_same_steps(ours: Recording, theirs: Recording, names: tuple[str, ...]) -> None:
    """What both logged of two steps under `names`, and the last step's gradients."""
    for step in (0, 1):
        for name in names:
            mine, its = (each.state.log_history[step][name] for each in (ours, theirs))
            assert abs(mine - its) <= max(1e-3 * abs(its), 1e-6), (step, name)
    assert set(ours.gradients) == set(theirs.gradients)
    norm = float(torch.stack([gradient.norm() for gradient in theirs.gradients.values()]).norm())
    assert norm > 0
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, rtol=1e-3, atol=1e-5 * norm)
