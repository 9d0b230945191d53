"""What a run says on standard error where that is no terminal."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from multiticket.runs import progress
from multiticket.runs.progress import RunProgress


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)

    def wait(seconds: float) -> None:
        clock.now += seconds

    return wait


def test_the_first_step_every_tenth_and_the_last_are_said_with_the_time_left(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with RunProgress("run", 100) as run:
        run.training(0)
        for step in range(1, 101):
            wait(2)
            run.step(step, 0.25, 0.1512)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "run: training, steps 1 to 100"
    assert said[1] == "run: step 1/100  reward 0.250  KL 0.15 nats a completion  3 min left"
    assert [int(re.findall(r"step (\d+)/", line)[0]) for line in said[1:]] == [1, *range(10, 101, 10)]
    assert said[-2].endswith(" 20 s left")


def test_a_slow_step_is_said_each_minute_and_a_resumed_run_counts_its_own_pace(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with RunProgress("run", 1000) as run:
        run.training(500)
        for step in range(501, 505):
            wait(70)
            run.step(step, 0.5)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "run: training, steps 501 to 1000"
    assert [line.split("  ")[-1] for line in said[1:]] == [
        "9.7 h left",
        "9.7 h left",
        "9.7 h left",
        "9.6 h left",
    ]


def test_a_phase_that_takes_long_says_how_far_it_is(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with RunProgress("run", 10) as run:
        run.phase("measuring the base")
        for done in range(0, 1001, 100):
            run.completions(done // 2, 1000, done)
            wait(4)
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [
        "run: measuring the base",
        "run: measuring the base: 150 of 1,000 completions, 28 s left",
    ]
    assert len(said) == 4


def test_what_is_measured_on_the_way_is_not_counted_as_training(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with RunProgress("run", 2) as run:
        run.training(0)
        wait(5)
        with run.aside("measuring on validation problems"):
            wait(1000)
            run.completions(1, 4, 1.0)
        run.step(1, None)
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "run: measuring on validation problems: 1 of 4 completions, 50 min left"
    assert said[2].endswith(" 5 s left")


def test_nothing_is_said_where_nothing_is_to_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress("run", 2, show=False) as run:
        run.phase("x")
        run.note("y")
        run.training(0)
        run.step(1, 1.0)
    assert capsys.readouterr().err == ""


def test_a_step_that_takes_long_says_what_it_does(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with RunProgress("run", 5) as run:
        run.training(1)
        for share in range(0, 101, 10):
            run.within_step("generating", share / 100)
            wait(10)
        run.within_step("forward and backward passes")
        run.step(2, 0.5)
        wait(61)
        run.within_step("scoring")
    said = capsys.readouterr().err.splitlines()
    assert said[1:3] == ["run: step 2/5: generating 60%", "run: step 2/5  reward 0.500  6 min left"]
    assert said[-1] == "run: step 3/5: scoring"
