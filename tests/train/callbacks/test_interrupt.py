"""SIGTERM and SIGINT: a checkpoint of the step, a sentence, an exit code, and the same run when it goes on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import made, metrics, small
from transformers import TrainerCallback

from multiticket.cli import main
from multiticket.runs.folder import RunFolder
from multiticket.ticket import Ticket
from multiticket.train import evaluations, session
from multiticket.train import run as run_module
from multiticket.train.callbacks import interrupt
from multiticket.train.callbacks.interrupt import RunInterrupted, StopSignals
from multiticket.train.peak_memory import PeakMemory
from multiticket.train.run import run_training
from multiticket.train.trainer import RLVRTrainer


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _Send(TrainerCallback):
    """Sends a signal to this process in the middle of a step."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum = signum
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            signal.raise_signal(self.signum)


def _send_at(monkeypatch: pytest.MonkeyPatch, signum: int, step: int) -> None:
    watch = session.Session.watch

    def watch_and_send(self: Any) -> None:
        watch(self)
        self.trainer.add_callback(_Send(signum, step))

    monkeypatch.setattr(session.Session, "watch", watch_and_send)


@pytest.fixture(scope="module")
def expected(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("whole") / "run"
    run_training(small(toy_model_folder, save_every=None), output, show_progress=False)
    return {**made(output), "config.json": None}


@pytest.mark.parametrize(("signum", "step"), [(signal.SIGTERM, 3), (signal.SIGINT, 5)])
def test_a_signal_saves_the_step_and_the_run_goes_on_to_the_same_bits(
    signum: int,
    step: int,
    expected: dict[str, Any],
    toy_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, output = small(toy_model_folder, save_every=None), tmp_path / "run"
    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        _send_at(patch, signum, step)
        with pytest.raises(RunInterrupted, match="--resume") as stop:
            run_training(settings, output, show_progress=False)
    assert stop.value.code == 128 + signum
    assert signal.getsignal(signum) is before
    assert (output / "checkpoints" / f"step-{step}").is_dir()
    assert len(metrics(output)) == step
    lines = (output / "metrics.jsonl").read_bytes()
    run_training(settings, output, resume=True, show_progress=False)
    assert (output / "metrics.jsonl").read_bytes().startswith(lines)
    found = {**made(output), "config.json": None}
    assert {**found, "checkpoints": None} == {**expected, "checkpoints": None}


def test_the_command_says_so_and_exits_with_the_signals_code(
    toy_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _send_at(monkeypatch, signal.SIGTERM, 1)
    arguments = ["train", "--task", "toy_task:TASK", "--model", str(toy_model_folder), "--steps", "3"]
    arguments += ["--rollouts", "32", "--group", "4", "--problems", "5", "--samples", "2"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--output", str(tmp_path / "run")])
    assert stop.value.code == 143
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("multiticket: Stopped after step 1")
    assert said.endswith(f"multiticket train --resume --output {tmp_path / 'run'}")


def test_a_second_signal_works_as_before() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_stopped_no_step_is_not_lost(tmp_path: Path) -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signals.follow(tmp_path)


def _slow(monkeypatch: pytest.MonkeyPatch, signum: int, step: int, seconds: float = 30.0) -> None:
    """A step that takes `seconds`, with a signal at its beginning; what it draws at random comes before it waits."""
    generate = RLVRTrainer._generate_and_score_completions

    def slow(self: Any, inputs: Any) -> Any:
        found = generate(self, inputs)
        if self.state.global_step == step - 1:
            signal.raise_signal(signum)
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                time.sleep(0.05)
        return found

    monkeypatch.setattr(RLVRTrainer, "_generate_and_score_completions", slow)


@pytest.mark.parametrize("step", [1, 4])
def test_a_step_that_takes_long_is_given_up_and_taken_again_to_the_same_bits(
    step: int,
    expected: dict[str, Any],
    toy_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, output = small(toy_model_folder, save_every=None), tmp_path / "run"
    monkeypatch.setattr(interrupt, "PATIENCE", 0.3)
    with monkeypatch.context() as patch:
        _slow(patch, signal.SIGINT, step)
        began = time.monotonic()
        with pytest.raises(RunInterrupted, match="--resume") as stop:
            run_training(settings, output, show_progress=False)
    assert time.monotonic() - began < 15
    assert stop.value.step == step - 1
    assert ("before the first step" in str(stop.value)) == (step == 1)
    assert RunFolder(output).checkpoints.last() == (step - 1 or None)
    run_training(settings, output, resume=True, show_progress=False)
    found = {**made(output), "config.json": None}
    assert {**found, "checkpoints": None} == {**expected, "checkpoints": None}


@pytest.mark.parametrize("measurement", [1, 2, 4])
def test_a_measurement_is_given_up_at_once_and_done_when_the_run_goes_on(
    measurement: int,
    expected: dict[str, Any],
    toy_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1: of the base; 2: of validation problems at step 3; 4: of what was trained, which is not trained again."""
    settings, output = small(toy_model_folder, save_every=None), tmp_path / "run"
    evaluate, calls = evaluations.evaluate, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == measurement:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "evaluate", interrupted)
        with pytest.raises(RunInterrupted) as stop:
            run_training(settings, output, show_progress=False)
    assert stop.value.code == 143
    assert len(calls) == measurement
    if measurement == 4:
        monkeypatch.setattr(RLVRTrainer, "train", None)
    result = run_training(settings, output, resume=True, show_progress=False)
    assert result["wall_s"] >= result["train_s"]
    assert not RunFolder(output).trained.exists()
    found = {**made(output), "config.json": None}
    assert {**found, "checkpoints": None} == {**expected, "checkpoints": None}


DESCRIBES = ("name_and_revision", "dequantised_from", "versions", "evaluate_kept", "result_of")
"""All by which a run is measured and described."""


def test_nothing_that_is_told_of_a_run_can_lose_what_was_trained(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, output = small(toy_model_folder, save_every=None, steps=2), tmp_path / "run"
    with monkeypatch.context() as patch:
        train = RLVRTrainer.train

        def train_and_break_the_rest(self: Any, *args: Any, **kwargs: Any) -> Any:
            done = train(self, *args, **kwargs)
            for name in DESCRIBES:
                patch.setattr(run_module, name, lambda *_, **__: 1 / 0)
            patch.setattr(PeakMemory, "most", lambda _: 1 / 0)
            return done

        patch.setattr(RLVRTrainer, "train", train_and_break_the_rest)
        with pytest.raises(ZeroDivisionError):
            run_training(settings, output, show_progress=False)
    kept = Ticket.load(RunFolder(output).ticket)
    assert (kept.told["model"], kept.told["steps"]) == (str(toy_model_folder), 2)
    assert kept.told["versions"]["python"]
    monkeypatch.setattr(RLVRTrainer, "train", None)
    assert run_training(settings, output, resume=True, show_progress=False)["eval"]["after"]
    told = Ticket.load(RunFolder(output).ticket)
    assert told.told["scores"]
    assert told.mask.names == kept.mask.names
    for name, values in kept.sections[0].values.items():
        assert torch.equal(told.sections[0].values[name], values)


@pytest.mark.parametrize("name", ["name_and_revision", "dequantised_from", "versions"])
def test_what_cannot_be_told_is_an_error_before_the_training(
    name: str, toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, name, lambda *_, **__: 1 / 0)
    monkeypatch.setattr(RLVRTrainer, "train", None)  # never called
    with pytest.raises(ZeroDivisionError):
        run_training(small(toy_model_folder, steps=2), tmp_path / "run", show_progress=False)


def test_in_another_thread_nothing_is_handled_and_training_works(
    toy_model_folder: Path, tmp_path: Path
) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    results: list[dict[str, Any]] = []
    settings = small(toy_model_folder, steps=1, eval_every=None)
    thread = threading.Thread(
        target=lambda: results.append(run_training(settings, tmp_path / "run", show_progress=False))
    )
    thread.start()
    thread.join()
    assert results[0]["steps"] == 1
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before
