"""Rollouts that are trained on for several steps: stopped anywhere, a run ends at the same bits, with a line a step."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import in_a_child, made, metrics, small

from multiticket import config
from multiticket.train.callbacks.interrupt import RunInterrupted, StopNow
from multiticket.train.run import run_training
from multiticket.train.trainer import RLVRTrainer

SHAPES: dict[str, dict[str, Any]] = {
    "each generation twice": {"num_iterations": 2},
    "each generation three times": {"num_iterations": 3},
    "a generation for two steps": {"steps_per_generation": 4},
    "a generation for two steps, twice": {"steps_per_generation": 4, "num_iterations": 2},
    "a generation and a half for a step": {"steps_per_generation": 3},
    "two generations for a step": {"steps_per_generation": 1},
    "an entropy target": {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef_delta": 0.01},
}
STEPS = 5


def settings(model: Path, options: dict[str, Any], **more: Any) -> config.RunConfig:
    """Two passes a step."""
    return small(
        model,
        rollouts=24,
        micro_batch=12,
        steps=STEPS,
        save_every=3,
        keep_last=9,
        eval_every=None,
        grpo=options,
        **more,
    )


def run(settings: config.RunConfig, output: Path, resume: bool = False) -> dict[str, Any]:
    run_training(settings, output, resume=resume, show_progress=False)
    return made(output)


def without_names(made: dict[str, Any]) -> dict[str, Any]:
    """A stop adds a checkpoint of its own."""
    return {name: value for name, value in made.items() if name != "checkpoints"}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_that_is_killed_or_stopped_anywhere_ends_at_the_same_bits(
    shape: str, toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(toy_model_folder, SHAPES[shape])
    expected = run(chosen, tmp_path / "whole")
    assert [line["step"] for line in expected["metrics"]] == list(range(1, STEPS + 1))
    for line in expected["metrics"]:
        assert {"reward", "kl", "loss", "completion_length", "accuracy"} <= {
            k for k, v in line.items() if v is not None
        }

    output = tmp_path / "killed"
    assert in_a_child(lambda: (_kill_in_step(5), run(chosen, output))) == -signal.SIGKILL
    assert run(chosen, output, resume=True) == expected
    for step in (2, 3, 5):
        output = tmp_path / f"stopped-in-{step}"
        with monkeypatch.context() as patch:
            _give_up_in_step(step, patch)
            with pytest.raises(RunInterrupted):
                run(chosen, output)
        assert without_names(run(chosen, output, resume=True)) == without_names(expected), step


def _kill_in_step(step: int) -> None:
    def deadly(trainer: RLVRTrainer) -> None:
        if trainer.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)

    RLVRTrainer.before_step = deadly  # type: ignore[method-assign]


def _give_up_in_step(step: int, patch: pytest.MonkeyPatch) -> None:
    """A signal has come, and its patience ends in the middle of a step: after its last pass, before the optimiser's."""
    original = RLVRTrainer.training_step

    def impatient(trainer: RLVRTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = original(trainer, *args, **kwargs)
        if trainer.state.global_step + 1 == step and trainer.accelerator.sync_gradients:
            os.kill(os.getpid(), signal.SIGTERM)
            raise StopNow
        return loss

    patch.setattr(RLVRTrainer, "training_step", impatient)


def test_stopped_again_and_again(toy_model_folder: Path, tmp_path: Path) -> None:
    """By real signals after random times, at a rate that is found."""
    options = {"num_iterations": 2, "steps_per_generation": 4}
    chosen = settings(toy_model_folder, options, learning_rate="auto")
    expected = run(chosen, tmp_path / "whole")
    wait = random.Random(17)
    output, deaths = tmp_path / "cut", 0
    for attempt in range(12):
        signum = (signal.SIGKILL, signal.SIGTERM)[attempt % 2]

        def work(limit: float = wait.uniform(0.1, 0.5) * (attempt + 1), signum: int = signum) -> None:
            parent = os.getpid()
            if os.fork() == 0:
                time.sleep(limit)
                os.kill(parent, signum)
                os._exit(0)
            run(chosen, output, resume=(output / "config.json").exists())

        if in_a_child(work) == 0:
            break
        deaths += 1
    assert deaths > 0
    assert without_names(run(chosen, output, resume=True)) == without_names(expected)


def test_a_run_that_generates_for_every_step_keeps_no_rollouts(
    toy_model_folder: Path, tmp_path: Path
) -> None:
    run(settings(toy_model_folder, {}), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").rglob("in-hand*"))
    assert len(metrics(tmp_path / "run")) == STEPS


def test_more_problems_at_once_than_there_are_is_refused(toy_model_folder: Path, tmp_path: Path) -> None:
    """TRL would find no whole batch, take no step, and say that all is well."""
    with pytest.raises(ValueError, match=r"Completions of 60 problems .* has 40 to train on"):
        run(settings(toy_model_folder, {"steps_per_generation": 20}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
