"""Ask math-verify whether two answers are equal, from any thread, with a hard limit on time.

math-verify runs in a child process (`math_worker`), because it can be sent into computations that end never and
that nothing within a process can break off; its own time limits use signals, which work in a main thread only.
Children are started as `python -m`, which works from unguarded scripts, notebooks and standard input, where
multiprocessing's spawn does not. A second child waits, warmed up, for the first to be killed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

CPU_S = 2.0
"""Processor time that a check may take; a usual one takes 1 to 300 ms."""
WALL_S = 15.0
"""Time after which a check is given up even where the machine is too busy to spend `CPU_S` on it."""
START_S = 120.0
"""Time that a child may take to start."""


class CheckFailed(Exception):
    """The checker crashed or ran out of time, so nothing is known of the two answers."""


class _Child:
    """A running worker: one request at a time, or closed."""

    def __init__(self) -> None:
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "multiticket.tasks.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self.replies: queue.Queue[str | None] = queue.Queue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self.ready = False

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.replies.put(line)
        self.replies.put(None)

    def ask(self, request: dict[str, object]) -> dict[str, object]:
        """The reply. Raises CheckFailed, and is of no more use, where none comes."""
        if not self.ready:
            self._receive(START_S)
            self.ready = True
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError) as error:
            raise CheckFailed("the checker has gone") from error
        reply = self._receive(WALL_S)
        if "error" in reply:
            raise CheckFailed(f"the checker failed with {reply['error']}")
        return reply

    def _receive(self, seconds: float) -> dict[str, object]:
        try:
            line = self.replies.get(timeout=seconds)
        except queue.Empty:
            raise CheckFailed("the checker ran out of time") from None
        if line is None:
            status = self.process.wait()
            late = status == -getattr(signal, "SIGPROF", 0)
            raise CheckFailed(
                "the checker ran out of time" if late else f"the checker ended with status {status}"
            )
        reply: dict[str, object] = json.loads(line)
        return reply

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.listener.join(timeout=1)
        if self.process.stdout is not None and not self.listener.is_alive():
            self.process.stdout.close()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()


class MathChecker:
    """Two children, of which one is asked, under a lock: answers come one after another, from whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: list[_Child] = []
        self._process = os.getpid()

    def equal(self, expected: str, given: str) -> bool:
        """math-verify's judgement. Raises CheckFailed where none came in time."""
        return bool(self._ask({"expected": expected, "given": given})["equal"])

    def value(self, answer: str) -> str | None:
        """The decimal value of an answer, if it has one. Raises CheckFailed where none came in time."""
        found = self._ask({"value": answer})["value"]
        return None if found is None else str(found)

    def _ask(self, request: dict[str, object]) -> dict[str, object]:
        with self._lock:
            for dead in [child for child in self._children if child.process.poll() is not None]:
                self._children.remove(dead)
                dead.close()
            while len(self._children) < 2:
                self._children.append(_Child())
            child = self._children[0]
            try:
                return child.ask({**request, "cpu_s": CPU_S})
            except CheckFailed:
                self._children.remove(child)
                child.close()
                self._children.append(_Child())
                raise

    def close(self) -> None:
        """End the children; the next question starts others. Nothing in a process that was forked off."""
        if os.getpid() == self._process:
            with self._lock:
                while self._children:
                    self._children.pop().close()


def require_math_verify() -> None:
    """Raises ValueError where math-verify or its parser is not installed."""
    from importlib.util import find_spec

    if find_spec("math_verify") is None or find_spec("antlr4") is None:
        raise ValueError('This task compares answers by math-verify: pip install "multiticket[math]".')


_checker = MathChecker()
atexit.register(lambda: _checker.close())


def _after_fork() -> None:
    """A forked process must not talk to its parent's children: it gets its own."""
    global _checker
    _checker = MathChecker()
    remembered.cache_clear()
    remembered_value.cache_clear()


@lru_cache(maxsize=65536)
def remembered(expected: str, given: str) -> bool | None:
    """`MathChecker.equal` by this process's checker; None where it failed. Each pair of answers is asked once."""
    try:
        return _checker.equal(expected, given)
    except CheckFailed:
        return None


@lru_cache(maxsize=4096)
def remembered_value(answer: str) -> Fraction | None:
    """The value of an answer to 30 digits; None where it has none, or the checker failed."""
    try:
        found = _checker.value(answer)
        return None if found is None else Fraction(found)
    except (CheckFailed, ValueError):
        return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
