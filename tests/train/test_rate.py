"""The learning rate's controller on made-up KLs, and the probe against what Adam does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from toy_task import TASK

import multiticket as mt
from multiticket import config
from multiticket.arms.prepared import as_prepared
from multiticket.mask import Mask
from multiticket.models import load_model
from multiticket.sparse import attach
from multiticket.train.probe import FirstStepProbe
from multiticket.train.rate import AVERAGED_STEPS, MOST_STRIDE, REACH, RateController, solve_rate
from multiticket.train.recipe import grpo_config
from multiticket.train.rewards import reward_function
from multiticket.train.run import run_training
from multiticket.train.step_kl import StepKL
from multiticket.train.trainer import RLVRTrainer

TARGET = 0.004


def _controller(control: Any, rate: float = 1e-2) -> RateController:
    controller = RateController(TARGET, control, fallback=1.0)
    controller.start(rate)
    return controller


@given(
    sensitivity=st.floats(1e-3, 1e6),
    off_by=st.floats(0.35, 2.8),
    seed=st.integers(0, 1000),
    control=st.sampled_from(["average", "hold"]),
)
def test_noisy_kls_lead_to_the_rate_that_moves_the_target(
    sensitivity: float, off_by: float, seed: int, control: Any
) -> None:
    """KL = c rate^2 with log-normal noise of a factor 1.5: to 20 % for hold, to 50 % for average of 5 steps."""
    noise = np.random.default_rng(seed)
    ideal = math.sqrt(TARGET / sensitivity)
    controller = _controller(control, ideal * off_by)
    rates = [
        controller.update(sensitivity * controller.rate**2 * math.exp(0.4 * noise.standard_normal()))
        for _ in range(100)
    ]
    assert rates[-1] == pytest.approx(ideal, rel=0.2 if control == "hold" else 0.5)
    if control == "average":
        assert len(set(rates[AVERAGED_STEPS - 1 :])) == 1


def test_without_noise_one_step_corrects_it_and_the_rest_change_nothing() -> None:
    controller = _controller("average", 2e-2)
    rates = [controller.update(10 * controller.rate**2) for _ in range(8)]
    assert rates == pytest.approx([0.02] * 8)  # 10 * 0.02^2 is the target
    controller = _controller("average", 3e-2)
    assert controller.update(10 * 0.03**2) == pytest.approx(0.02)


def test_probe_keeps_its_rate_whatever_comes() -> None:
    controller = _controller("probe")
    assert {controller.update(kl) for kl in (1e-9, 1.0, math.inf, math.nan, 0.0)} == {1e-2}


@pytest.mark.parametrize("control", ["average", "hold"])
def test_saturation_cannot_raise_the_rate_without_bound(control: Any) -> None:
    controller = _controller(control)
    for _ in range(AVERAGED_STEPS):
        controller.update(TARGET * (controller.rate / 1e-2) ** 2)
    for step in range(500):
        rate = controller.update(1e-12 if step % 2 else 0.0)
    assert rate == pytest.approx(1e-2 if control == "average" else 1e-2 * REACH)


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60),
    st.sampled_from(["average", "hold"]),
)
def test_any_kl_is_survived_and_the_rate_stays_in_reach(kls: list[float], control: Any) -> None:
    controller = _controller(control)
    for kl in kls:
        before = controller.rate
        rate = controller.update(kl)
        assert 1e-2 / REACH**2 * 0.999 <= rate <= 1e-2 * REACH**2 * 1.001
        if math.isnan(kl) or kl <= 0:
            assert rate == before


@pytest.mark.parametrize("control", ["probe", "average", "hold"])
def test_no_step_goes_far_beyond_the_size_of_the_weights(control: Any) -> None:
    controller = RateController(0.1, control, 1e-3, weight=0.05)
    controller.start(7.0)
    assert controller.rate == MOST_STRIDE * 0.05
    for _ in range(30):
        assert controller.update(1e-4) <= MOST_STRIDE * 0.05  # far too little: it would raise the rate
    small = RateController(0.1, control, 1e-3, weight=0.05)
    small.start(1e-3)
    assert small.rate == 1e-3


def test_the_size_of_the_weights_is_that_of_the_trained_matrices(toy_model_folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(toy_model_folder)
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    whole = torch.cat([weight.detach().flatten() for weight in weights]).square().mean().sqrt()
    assert as_prepared(model, None).typical_weight() == pytest.approx(float(whole))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0 if parameter.dim() == 2 else 9.0)
    attachment = mt.attach(model, mt.Mask.random(model, 0.1))
    assert as_prepared(model, attachment).typical_weight() == pytest.approx(3.0)


def test_its_state_goes_through_json_and_goes_on_the_same() -> None:
    first = _controller("hold")
    for kl in (0.001, 0.01, 0.003, 0.02, 0.001, 0.004, 0.009):
        first.update(kl)
    second = RateController(1.0, "probe", 1.0)
    second.__dict__.update(json.loads(json.dumps(vars(first))))
    kls = [0.002, 0.05, 0.0004]
    assert [second.update(kl) for kl in kls] == [first.update(kl) for kl in kls]


@given(sensitivity=st.floats(1e-4, 1e7), guess=st.floats(1e-6, 1.0), power=st.floats(1.0, 3.0))
def test_solve_rate_finds_the_target_from_any_guess(sensitivity: float, guess: float, power: float) -> None:
    def kl(rate: float) -> float:
        return math.inf if sensitivity * rate**power > 1e6 else sensitivity * rate**power

    ideal = (TARGET / sensitivity) ** (1 / power)
    found = solve_rate(kl, guess, TARGET, evaluations=30)
    if ideal < 9:
        assert found is not None
        assert abs(math.log(kl(found) / TARGET)) <= 0.05
    elif ideal > 20:
        assert found is None or kl(found) > TARGET / 2


@pytest.mark.parametrize("flat", [0.0, 1e-14, math.nan, math.inf])
def test_a_kl_that_no_rate_changes_gives_no_rate(flat: float) -> None:
    assert solve_rate(lambda _: flat, 1e-2, TARGET) is None


def test_solve_rate_steps_over_a_dead_zone_and_a_cliff() -> None:
    """As with bf16 weights: nothing moves below a rate; above another all is lost."""

    def kl(rate: float) -> float:
        return 0.0 if rate < 1e-3 else 100 * rate**2 if rate < 0.05 else math.nan

    found = solve_rate(kl, 1e-6, TARGET)
    assert found == pytest.approx(math.sqrt(TARGET / 100), rel=0.05)


class Watching(RLVRTrainer):
    """Keeps what there was before and after the probe, and what each step moved."""

    def step_kl(self) -> StepKL:
        kl = super().step_kl()
        self.moved = [*getattr(self, "moved", []), kl.completion]
        return kl

    def probe_rate(self) -> None:
        before = [p.detach().clone() for p in self.model.parameters()], torch.get_rng_state()
        gradients = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        super().probe_rate()
        after = [p.detach().clone() for p in self.model.parameters()], torch.get_rng_state()
        assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
        assert torch.equal(before[1], after[1])
        kept = [p.grad for p in self.model.parameters() if p.grad is not None]
        assert all(torch.equal(a, b) for a, b in zip(gradients, kept, strict=True))
        self.probed = True


def _settings(folder: Path, arm: str, **more: Any) -> config.RunConfig:
    settings: dict[str, Any] = {
        "task": "toy_task:TASK",
        "model": str(folder),
        "arm": arm,
        "learning_rate": "auto",
        "steps": 2,
        "rollouts": 80,
        "group": 8,
        "eval": {"problems": 10, "samples": 1},
    }
    if arm == "ticket":
        settings["density"] = 0.1
    return config.build({**settings, **more})


@pytest.mark.parametrize("arm", ["ticket", "full"])
@pytest.mark.parametrize("first_guess", [1e-6, 1.0])
def test_the_first_step_moves_the_target_kl(
    arm: str, first_guess: float, toy_model_folder: Path, tmp_path: Path
) -> None:
    run = _settings(toy_model_folder, arm, steps=1)
    model, tokenizer = load_model(str(toy_model_folder))
    attachment = attach(model, Mask.random(model, density=run.density)) if arm == "ticket" else None
    trainer = Watching(
        model=model,
        reward_funcs=reward_function(TASK),
        args=grpo_config(run, tmp_path, TASK.max_completion_tokens),
        train_dataset=TASK.problems("train"),
        processing_class=tokenizer,
        attachment=attachment,
        kl_rollouts=64,
        rate=RateController(TARGET, "probe", fallback=first_guess),
    )
    trainer.train()
    assert trainer.probed
    logged = trainer.state.log_history[0]
    assert trainer.moved == [pytest.approx(TARGET, rel=0.06)]
    assert logged["learning_rate"] == trainer.rate.rate  # type: ignore[union-attr]


def test_the_probe_is_adams_first_step() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(1000))
    parameter.grad = torch.randn(1000) * 10.0 ** torch.randint(-12, 2, (1000,))
    optimizer = torch.optim.AdamW([parameter], lr=3e-3, weight_decay=0.1)
    before = parameter.detach().clone()
    probe = FirstStepProbe(optimizer, lambda: None)
    probe.move(3e-3)
    moved = parameter.detach().clone()
    probe.restore()
    assert torch.equal(parameter, before)
    optimizer.step()
    torch.testing.assert_close(moved, parameter.detach(), rtol=1e-6, atol=1e-7)


def test_flat_rewards_put_the_probe_off(toy_model_folder: Path, tmp_path: Path) -> None:
    """A first batch without any signal has no gradient, and so no rate; the second one has."""
    seen = []

    class FlatOnce(Watching):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            if not seen:
                output["advantages"].zero_()
            seen.append(output)
            return output

    run = _settings(toy_model_folder, "ticket")
    model, tokenizer = load_model(str(toy_model_folder))
    trainer = FlatOnce(
        model=model,
        reward_funcs=reward_function(TASK),
        args=grpo_config(run, tmp_path, TASK.max_completion_tokens),
        train_dataset=TASK.problems("train"),
        processing_class=tokenizer,
        attachment=attach(model, Mask.random(model, density=run.density)),
        kl_rollouts=64,
        rate=RateController(TARGET, "probe", fallback=run.usual_rate),
    )
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["learning_rate"] == 0
    assert second["learning_rate"] != run.usual_rate
    assert TARGET / 4 < trainer.moved[1] < TARGET * 4  # Adam's second step with its first gradient


@pytest.mark.parametrize(("arm", "control"), [("ticket", "hold"), ("full", "average")])
def test_a_killed_run_resumes_at_the_same_rate(
    arm: str, control: str, toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiticket.train.rate.MOST_STRIDE", 100.0)  # the toy's weights are small
    run = _settings(toy_model_folder, arm, steps=8, save_every=3, rate_control=control)
    whole = run_training(run, tmp_path / "whole", show_progress=False)
    rates = [line["learning_rate"] for line in _lines(tmp_path / "whole")]
    assert whole["learning_rate_asked"] == "auto"
    assert len(set(rates)) == (8 if control == "hold" else 6)
    if control == "average":
        assert whole["learning_rate"] == rates[-1]

    for killed_after in (3, 6):
        copy = tmp_path / f"killed-{killed_after}"
        shutil.copytree(tmp_path / "whole", copy)
        (copy / "result.json").unlink()
        for step in (6, 8):
            if step > killed_after:
                shutil.rmtree(copy / "checkpoints" / f"step-{step}")
        resumed = run_training(run, copy, resume=True, show_progress=False)
        assert resumed["learning_rate"] == whole["learning_rate"]
        assert [line["learning_rate"] for line in _lines(copy)] == rates
        name = "ticket.safetensors" if arm == "ticket" else "model/model.safetensors"
        assert (copy / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"learning_rate": "auto", "kl_rollouts": 0}, "needs each step's KL"),
        ({"learning_rate": "fast"}, "learning_rate should be a valid number"),
        ({"learning_rate": -1.0}, "learning_rate should be greater than 0, but is -1.0"),
        ({"target_kl": 0.0}, "target_kl_per_completion should be greater than 0"),
        ({"rate_control": "always"}, "rate_control should be 'probe', 'average' or 'hold'"),
    ],
)
def test_mistakes_in_the_settings_are_said(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config.build(settings)


def test_auto_is_refused_for_an_optimiser_whose_first_step_is_not_adams(tmp_path: Path) -> None:
    run = config.build({"learning_rate": "auto", "grpo": {"optim": "sgd"}})
    with pytest.raises(
        ValueError, match="tries Adam's first step, and optim is sgd: set learning_rate to a number"
    ):
        grpo_config(run, tmp_path, 8)
    grpo_config(config.build({"learning_rate": 0.1, "grpo": {"optim": "sgd"}}), tmp_path, 8)
