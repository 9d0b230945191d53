"""Score functions as people write them, and whatever they do."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multiticket.errors import StopNow
from multiticket.tasks.guarded import Guard
from multiticket.tasks.judging import Problem
from multiticket.tasks.score_function import ScoreFunction

PROBLEMS = [Problem(f"{n}?", str(n), {"n": n}) for n in range(6)]
ANSWERS = [problem.answer for problem in PROBLEMS]


def scores(function: Any, completions: list[str] = ANSWERS, seconds: float = 5.0) -> list[float]:
    return ScoreFunction(function, "my:score", seconds)(completions, PROBLEMS)


def test_one_completion_at_a_time() -> None:
    assert scores(lambda completion, answer: completion == answer) == [1.0] * 6
    assert scores(lambda c, a, metadata, prompt: metadata["n"] / 5 if prompt == f"{a}?" else 0)[4] == 0.8


def test_a_batch_by_name() -> None:
    def mine(completions: list[str], answers: list[str], metadata: list[dict[str, int]]) -> Any:
        return np.array(
            [float(c == a == str(m["n"])) for c, a, m in zip(completions, answers, metadata, strict=True)]
        )

    assert scores(mine) == [1.0] * 6


def test_a_reward_function_as_trl_takes_it() -> None:
    def reward(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        assert columns["metadata"][2] == {"n": 2}
        return [float(c == a and p == f"{a}?") for p, c, a in zip(prompts, completions, answer, strict=True)]

    assert scores(reward) == [1.0] * 6


def test_async_functions_wait_together() -> None:
    async def slow(completion: str, answer: str) -> float:
        await asyncio.sleep(0.2)
        return float(completion == answer)

    started = time.perf_counter()
    assert scores(slow) == [1.0] * 6
    assert time.perf_counter() - started < 0.9

    async def batch(completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [0.5] * len(completions)

    assert scores(batch) == [0.5] * 6


def test_async_functions_in_a_loop_that_runs() -> None:
    async def score(completion: str, answer: str) -> float:
        return 1.0

    async def notebook() -> list[float]:
        return scores(score)

    assert asyncio.run(notebook()) == [1.0] * 6


@pytest.mark.filterwarnings("ignore:The score of")
def test_a_batch_of_the_wrong_length_fails_whole() -> None:
    function = ScoreFunction(lambda completions: [1.0], "my:score", 5)
    assert function(ANSWERS, PROBLEMS) == [0.0] * 6
    assert function.failures == 6


@pytest.mark.filterwarnings("ignore:The score of")
@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit(), BaseException("?"), RecursionError(), MemoryError()]
)
def test_whatever_is_raised_is_a_failed_score(error: BaseException) -> None:
    def raises(completion: str, answer: str) -> float:
        raise error

    async def waits(completion: str, answer: str) -> float:
        if isinstance(error, SystemExit):  # ends asyncio's own loop
            raise RuntimeError
        raise error

    assert scores(raises) == [0.0] * 6
    assert scores(waits) == [0.0] * 6


def test_ctrl_c_is_the_persons() -> None:
    def interrupted(completion: str, answer: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores(interrupted)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_one_that_hangs_is_stopped_and_three_in_a_row_end_the_run() -> None:
    def hangs(completion: str, answer: str) -> float:
        while completion == "hang":
            try:
                time.sleep(0.01)
            except Exception:
                continue
        return 1.0

    function = ScoreFunction(hangs, "my:score", 0.2)
    with pytest.warns(UserWarning, match="it took longer than 0.2 s"):
        assert function(["hang", "1", "hang", "2", "hang", "3"], PROBLEMS) == [0, 1, 0, 1, 0, 1]
    with pytest.raises(
        ValueError, match=r"did not return within 0.2 s, 3 times in a row: .* timeout=SECONDS"
    ):
        function(["hang"] * 6, PROBLEMS)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_score_with_its_own_alarm_keeps_it() -> None:
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        Guard(5)(time.sleep, 0.1)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.25
        time.sleep(0.3)
        assert rung == [1]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_changing_the_folder_printing_and_forking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, process = os.getcwd(), os.getpid()

    def busy(completion: str, answer: str) -> float:
        os.chdir(tmp_path)
        print("thinking")
        os.fork()
        return 1.0

    assert scores(busy) == [1.0] * 6
    assert (os.getcwd(), os.getpid()) == (here, process)
    said = capsys.readouterr()
    assert said.out == ""
    assert "thinking" in said.err


def test_what_its_processes_print_is_no_output_of_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    def noisy(completion: str, answer: str) -> float:
        os.write(1, b"straight\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        return 1.0

    assert scores(noisy) == [1.0] * 6
    os.write(1, b"the result\n")
    said = capfd.readouterr()
    assert said.out == "the result\n"
    assert "straight" in said.err
    assert "from a child" in said.err


@pytest.mark.filterwarnings("ignore:The score of")
@pytest.mark.parametrize(("module", "name"), [(os, "_exit"), (sys, "exit")])
def test_one_that_ends_the_process_ends_a_call(module: Any, name: str) -> None:
    def ends(completion: str, answer: str) -> float:
        if completion == "end":
            if os.fork() == 0:
                os._exit(0)  # of a process of its own it may
            getattr(module, name)(0)  # looked up when it is called, as a score's own code does
        return 1.0

    kept = os._exit
    function = ScoreFunction(ends, "my:score", 5)
    assert function(["end", "1"] * 3, PROBLEMS) == [0.0, 1.0] * 3
    assert os._exit is kept


def test_output_stays_open_and_signals_stay_handled(capsys: pytest.CaptureFixture[str]) -> None:
    def careless(completion: str, answer: str) -> float:
        print("said", file=sys.stderr)
        sys.stdout.close()
        sys.stderr.close()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return 1.0

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert scores(careless) == [1.0] * 6
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    print("out")
    print("err", file=sys.stderr)
    said = capsys.readouterr()
    assert said.out == "out\n"
    assert said.err == "said\n" * 6 + "err\n"


def test_torch_is_afterwards_as_it_was() -> None:
    def careless(completion: str, answer: str) -> float:
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        return 1.0

    before = torch.get_num_threads()
    assert scores(careless) == [1.0] * 6
    assert torch.is_grad_enabled()
    assert (torch.get_default_dtype(), torch.get_num_threads()) == (torch.float32, before)


@pytest.mark.filterwarnings("ignore:The score of")
def test_errors_without_words_and_folders_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fails(completion: str, answer: str) -> float:
        raise Mute

    assert scores(fails) == [0.0] * 6
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)

    def removes(completion: str, answer: str) -> float:
        shutil.rmtree(gone, ignore_errors=True)
        return 1.0

    assert scores(removes) == [1.0] * 6


def test_random_numbers_of_the_training_are_left_alone() -> None:
    def seeds(completion: str, answer: str) -> float:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        return 1.0

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    scores(seeds)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
    drawn = scores(lambda c, a: random.random())
    assert len(set(drawn)) == 6


@pytest.mark.filterwarnings("ignore:The score of")
def test_a_score_that_nearly_always_fails_ends_the_run() -> None:
    def broken(completion: str, answer: str) -> float:
        raise KeyError("gold")

    function = ScoreFunction(broken, "my:score", 5)
    assert function(["1"] * 6, PROBLEMS) == [0.0] * 6
    with pytest.raises(ValueError, match=r"failed on 12 of 12 completions.*KeyError: 'gold'"):
        function(["1"] * 6, PROBLEMS)

    often = ScoreFunction(lambda c, a: 1.0 if c == "right" else None, "my:score", 5)
    said = ["right", *["wrong"] * 30]
    assert often(said, [PROBLEMS[0]] * 31) == [1.0, *[0.0] * 30]
    with pytest.raises(ValueError, match="failed on 91 of 93 completions, so nothing can be learned"):
        often(["right", *["wrong"] * 61], [PROBLEMS[0]] * 62)


@pytest.mark.filterwarnings("ignore:The score of")
def test_one_that_begins_to_fail_late_ends_the_run_too() -> None:
    """A judge's server that goes away after a thousand good answers."""
    function = ScoreFunction(lambda c, a: None if c == "lost" else 1.0, "my:score", 5)
    for _ in range(10):
        function(["good"] * 100, [PROBLEMS[0]] * 100)
    function(["lost"] * 100, [PROBLEMS[0]] * 100)
    function(["lost"] * 100, [PROBLEMS[0]] * 100)
    with pytest.raises(ValueError, match="failed on 300 of the newest 300 completions"):
        function(["lost"] * 100, [PROBLEMS[0]] * 100)
    assert function.failures == 300
    assert function.calls == 1300


def test_a_builtin_is_a_score_too() -> None:
    assert scores(str.__eq__) == [1.0] * 6


@pytest.mark.parametrize("kind", ["plain", "batch", "async"])
def test_a_run_that_is_to_stop_stops_in_the_midst_of_a_score(kind: str) -> None:
    """A signal comes while a score works; taken for a failed score, it would be lost."""

    def plain(completion: str, answer: str) -> float:
        raise StopNow

    def batch(completions: list[str]) -> list[float]:
        raise StopNow

    async def waiting(completion: str, answer: str) -> float:
        raise StopNow

    function = ScoreFunction({"plain": plain, "batch": batch, "async": waiting}[kind], "my:score", 5)
    with pytest.raises(StopNow):
        function(["1"], [PROBLEMS[0]])
    assert function.failures == 0
