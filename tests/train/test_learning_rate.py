"""The rate that sets itself: on KLs with known answers, and on a model."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_task import TASK

from multiticket import config
from multiticket.mask import Mask
from multiticket.sparse import attach
from multiticket.train.learning_rate import (
    CLOSE,
    LARGEST_CORRECTION,
    LATER_SHARE,
    SETTLING_STEPS,
    RateController,
    correction,
    solve_rate,
)
from multiticket.train.models import load_model
from multiticket.train.run import reward_function, run_training
from multiticket.train.trainer import RLVRTrainer, grpo_config


@given(scale=st.floats(1e-2, 1e8), target=st.floats(1e-4, 1.0), off=st.floats(-2.5, 2.5))
def test_a_quadratic_is_solved_from_any_start(scale: float, target: float, off: float) -> None:
    answer = math.sqrt(target / scale)
    rate = solve_rate(lambda rate: scale * rate**2, target, start=answer * 10**off)
    assert rate == pytest.approx(answer, rel=CLOSE)


def test_a_kl_that_explodes_or_cannot_be_seen_leads_back() -> None:
    def kl(rate: float) -> float:
        if rate > 1:
            return math.inf
        return 0.0 if rate < 1e-4 else rate**2

    for start in (100.0, 1e-7):
        assert kl(solve_rate(kl, 0.01, start)) == pytest.approx(0.01, rel=CLOSE)


def test_where_the_target_is_out_of_reach_the_nearest_rate_below_is_taken() -> None:
    assert solve_rate(lambda rate: 1e-3 * (1 - math.exp(-rate)), 0.1, 1.0) > 10  # saturates below the target
    assert solve_rate(lambda rate: math.nan, 0.1, 1.0) == pytest.approx(1e-7)
    step = solve_rate(lambda rate: 1e-3 if rate < 0.5 else 10.0, 0.1, 1.0)  # jumps over it
    assert step < 0.5


def test_the_settling_steps_correct_the_rate_once() -> None:
    controller = RateController(target=0.1)
    controller.begin(1e-2)
    generator = random.Random(0)
    scale = 4 * LATER_SHARE * 0.1 / 1e-2**2  # later steps move four times what they should
    for _ in range(SETTLING_STEPS):
        assert controller.rate == 1e-2
        controller.update(scale * controller.rate**2 * math.exp(generator.gauss(0, 0.2)))
    settled = controller.rate
    assert settled == pytest.approx(1e-2 / 2, rel=0.2)
    for kl in (0.0, 1e3, math.nan):
        controller.update(kl)
        assert controller.rate == settled


@given(
    st.lists(st.floats(min_value=0) | st.just(math.nan), min_size=1, max_size=8),
    st.floats(1e-3, 1),
)
def test_a_correction_is_bounded_whatever_was_measured(kls: list[float], target: float) -> None:
    assert 1 / LARGEST_CORRECTION <= correction(kls, target) <= LARGEST_CORRECTION


def test_no_movement_changes_no_rate() -> None:
    assert correction([0.0] * SETTLING_STEPS, 0.1) == 1.0


def test_its_state_goes_through_json_exactly() -> None:
    controller = RateController(target=0.1)
    controller.begin(0.1 / 3)
    controller.update(1 / 7)
    again = RateController(target=1.0)
    again.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert again == controller


class Watching(RLVRTrainer):
    """Notes what is trained before and after each tried step."""

    def try_step(self, rate: float) -> float:
        def trained() -> list[torch.Tensor]:
            return [p.detach().clone() for p in self.model.parameters()]

        before, random_state = trained(), torch.get_rng_state()
        kl = super().try_step(rate)
        self.tried = [*getattr(self, "tried", []), (rate, kl)]
        assert all(torch.equal(a, b) for a, b in zip(before, trained(), strict=True))
        assert torch.equal(random_state, torch.get_rng_state())
        return kl


@pytest.mark.parametrize(("arm", "density"), [("full", 1.0), ("ticket", 0.1), ("ticket", 0.02)])
def test_the_first_step_moves_the_target_and_trying_leaves_no_trace(
    toy_model_folder: Path, tmp_path: Path, arm: str, density: float
) -> None:
    run = config.build(
        {"arm": arm, "density": density, "steps": 1, "rollouts": 64, "group": 8, "learning_rate": "auto"}
    )
    model, tokenizer = load_model(str(toy_model_folder))
    attachment = attach(model, Mask.random(model, density=density)) if arm == "ticket" else None
    rate = RateController(target=0.02)
    trainer = Watching(
        model=model,
        reward_funcs=reward_function(TASK),
        args=grpo_config(run, tmp_path, TASK.max_completion_tokens),
        train_dataset=TASK.problems("train"),
        processing_class=tokenizer,
        attachment=attachment,
        kl_rollouts=64,
        rate=rate,
    )
    trainer.train()
    assert len(trainer.tried) >= 2
    assert rate.rate == trainer.tried[-1][0]
    assert rate.seen == [pytest.approx(0.02, rel=CLOSE)]
    assert rate.seen == [
        pytest.approx(trainer.tried[-1][1], rel=1e-3)
    ]  # the real step is the one that was tried


def test_a_resumed_run_finds_the_same_rate_and_the_same_bits(toy_model_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "task": "toy_task:TASK",
        "model": str(toy_model_folder),
        "density": 0.1,
        "learning_rate": "auto",
        "rollouts": 32,
        "group": 8,
        "save_every": 3,
        "eval": {"problems": 8, "samples": 1},
    }
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    result = run_training(config.build({**settings, "steps": 7}), whole, show_progress=False)
    run_training(
        config.build({**settings, "steps": 3}), halved, show_progress=False
    )  # within the settling steps
    again = run_training(config.build({**settings, "steps": 7}), halved, resume=True, show_progress=False)
    assert again["learning_rate"] == result["learning_rate"]
    assert (result["learning_rate_asked"], result["eval"]) == ("auto", again["eval"])
    rates = [
        [json.loads(line)["learning_rate"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, halved)
    ]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 2
    assert rates[0][-1] == result["learning_rate"]
    checkpoint = "checkpoints/step-6/values.safetensors"
    assert (whole / checkpoint).read_bytes() == (halved / checkpoint).read_bytes()


def test_a_rate_that_is_no_number_is_refused_in_words() -> None:
    with pytest.raises(
        ValueError, match="learning_rate should be a number greater than 0, or auto, but is 'fast'"
    ):
        config.build({"learning_rate": "fast"})
    with pytest.raises(ValueError, match="kl_rollouts"):
        config.build({"learning_rate": "auto", "kl_rollouts": 0})
