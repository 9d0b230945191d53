"""Let the arms take steps in turn: each in its own process, one step at a time, in a new random order each round."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from multiticket.research.bench.timed_arms import Arm, refuse_unmatched
from multiticket.research.bench.timed_process import StepSetup

Say = Callable[[str], None]


def measure(
    setups: Sequence[StepSetup], rounds: int, threads: int, say: Say, processes: int = 1
) -> list[dict[str, Any]]:
    """Each arm's trained values, seconds of each round, and memory.

    Args:
        setups: one an arm.
        rounds: steps of each arm; a slow moment of the machine falls on all arms of a round alike.
        threads: that each process computes with; only one computes at a time.
        say: takes progress, a line at a time.
        processes: that each arm has, one after the other, each for as many rounds. How fast a process is depends by a
            few percent on where its memory happens to lie; several give that luck a chance to even out.

    Raises:
        ValueError: a process ended, with the reason it gave; or rivals do not train as many values as a ticket.
    """
    if rounds < 1:
        raise ValueError(f"The number of --rounds must be at least 1, but is {rounds}.")
    if threads < 1:
        raise ValueError(f"The number of --threads must be at least 1, but is {threads}.")
    arms = [setup.arm for setup in setups]
    seconds: list[list[float]] = [[] for _ in setups]
    order = random.Random(0)
    for process in range(processes):
        with _workers(setups, threads) as workers:
            trained = []
            for worker in workers:
                say(f"preparing {worker.arm.name}")
                trained.append(worker.answer()["trained"])
            refuse_unmatched(arms, {arm.name: count for arm, count in zip(arms, trained, strict=True)})
            for number in range(rounds * process // processes, rounds * (process + 1) // processes):
                say(f"round {number + 1} of {rounds}")
                for place in order.sample(range(len(workers)), len(workers)):
                    seconds[place].append(workers[place].ask("step")["seconds"])
            memory = []
            for worker in workers if process == processes - 1 else ():
                say(f"memory of {worker.arm.name}")
                memory.append(worker.ask("memory"))
    return [
        {
            "arm": arm.name,
            "kind": arm.kind,
            "density": arm.density,
            "rank": arm.rank,
            "trained": count,
            "seconds": own,
            "memory": held,
        }
        for arm, count, own, held in zip(arms, trained, seconds, memory, strict=True)
    ]


class Worker:
    """An arm's process."""

    def __init__(self, setup: StepSetup, environment: dict[str, str]) -> None:
        self.arm: Arm = setup.arm
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "multiticket.research.bench.timed_process", setup.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )

    def ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended; the answer says why
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"Measuring {self.arm.name!r} failed: {self._why_it_ended()}")
        return json.loads(line)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()

    def _why_it_ended(self) -> str:
        """Of a traceback on standard error the last line, the error itself; a signal leaves no words of its own."""
        code = self._process.wait()
        if code < 0:
            return f"its process was killed by signal {-code}, perhaps because memory ran out."
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1][:300] if lines else f"its process ended with exit code {code}."


@contextlib.contextmanager
def _workers(setups: Sequence[StepSetup], threads: int) -> Iterator[list[Worker]]:
    """A process for each setup, started together, all ended when the block is left, by an error or Ctrl-C too.

    Threads that wait sleep (passive), or the arms that wait would take the cores from the one that computes.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
        "PYTHONIOENCODING": "utf-8",
    }
    workers: list[Worker] = []
    try:
        for setup in setups:
            workers.append(Worker(setup, environment))
        yield workers
    finally:
        for worker in workers:
            worker.stop()
