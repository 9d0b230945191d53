from __future__ import annotations

import pytest

from multiticket.train import phases
from multiticket.train.peak_memory import PeakMemory
from multiticket.train.phases import Phases


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])
    return now


def test_time_counts_for_the_innermost_phase_alone(clock: list[float]) -> None:
    times = Phases()
    clock[0] += 50  # outside all of them
    with times.of("train"):
        clock[0] += 1
        with times.of("generate"):
            clock[0] += 2
            with times.of("sync"):
                clock[0] += 4
            clock[0] += 8
        clock[0] += 16
    clock[0] += 32
    assert times.take() == {"train": 17.0, "generate": 10.0, "sync": 4.0}
    assert times.take() == {}


def test_what_was_taken_begins_anew_within_a_phase(clock: list[float]) -> None:
    times = Phases()
    times.begin("train")
    clock[0] += 3
    assert times.take() == {"train": 3.0}
    clock[0] += 5
    times.end()
    assert times.take() == {"train": 5.0}


def test_an_error_ends_its_phase(clock: list[float]) -> None:
    times = Phases()
    with pytest.raises(ZeroDivisionError), times.of("score"):
        clock[0] += 1 / len(times.take())
    clock[0] += 7
    with times.of("step"):
        clock[0] += 2
    assert times.take() == {"step": 2.0}


def test_what_begins_and_goes_on_is_told(clock: list[float]) -> None:
    times, told = Phases(), []
    times.progress(0.5)  # of nothing
    times.tell = lambda *words: told.append(words)
    with times.of("train"), times.of("generate"):
        times.progress(0.25)
    assert told == [
        ("forward and backward passes", None),
        ("generating", None),
        ("generating", 0.25),
        ("forward and backward passes", None),
    ]


class Memory(PeakMemory):
    """What the process is said to have held at most, each time that it is asked."""

    def __init__(self, *said: int | None) -> None:
        super().__init__()
        self._said = list(said)

    def take(self) -> int | None:
        return self._said.pop(0)


def test_memory_counts_for_the_innermost_phase_alone() -> None:
    phases = Phases(Memory(90, 5, 7, 6, 80, 3, 70))
    with phases.of("train"), phases.of("generate"):  # before: 90; in train: 5; in generate: 7
        pass  # and in train again: 6
    with phases.of("train"):  # between: 80
        pass  # in train once more: 3
    assert phases.take_peaks() == {"train": 6, "generate": 7}


def test_a_system_that_keeps_no_mark_tells_no_peaks() -> None:
    phases = Phases(Memory(*[None] * 9))
    with phases.of("train"):
        pass
    assert phases.take_peaks() == {}
    assert list(phases.take()) == ["train"]
