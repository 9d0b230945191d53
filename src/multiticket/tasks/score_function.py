"""A score function as people write them: for one completion or a batch, with or without `async`, and as TRL's rewards.

| its parameters | it is called with |
|---|---|
| `(completion, answer)` | one completion and its answer; also `prompt` or `metadata` where it names them |
| `completions` among them | lists, by name: `completions`, `prompts`, `answers` or `answer`, `metadata`, as TRL does |

With tools there are also `messages` and, with an environment, `environment` (`environments` for a batch).
It returns a number in [0, 1], or a list of them for a batch.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from multiticket.errors import StopNow
from multiticket.tasks.guarded import Guard, OutOfTime
from multiticket.tasks.judging import Problem
from multiticket.tasks.tools import Episode

TOGETHER = 32
"""Calls of an async function that wait at the same time."""
FIRST_CALLS = 8
"""Completions after which a score that always failed ends the run."""
MANY_CALLS = 64
"""Completions after which one that nearly always failed does."""
NEARLY_ALL = 0.95
RECENT_CALLS = 256
"""How many of the newest completions are looked at: a judge's server may go away in the midst of a run."""
HANGS_IN_A_ROW = 3


class ScoreFails(ValueError):
    """A score function is of no use: it fails, or does not return, nearly always."""


class ScoreFunction:
    """Scores of completions; what fails scores 0.0 and is counted, and the user's own traceback is shown once."""

    def __init__(self, function: Callable[..., Any], name: str, seconds: float) -> None:
        self.function = function
        self.name = name
        self.failures = 0
        """Completions so far whose score failed."""
        self.calls = 0
        self._recent: deque[tuple[int, int]] = deque()
        """Completions and failures of the newest calls, back to the `RECENT_CALLS`-th completion."""
        self._hangs = 0
        self._guard = Guard(seconds)
        self._last = ""
        self._shown = False
        parameters = _parameters(function)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        named = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.is_batch = "completions" in named
        self._names = set(named if self.is_batch else named[2:])
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004
        )

    @property
    def wants_environment(self) -> bool:
        """Whether it names the environments among its parameters."""
        return not self._names.isdisjoint(("environment", "environments"))

    def __call__(
        self,
        completions: Sequence[str],
        problems: Sequence[Problem],
        episodes: Sequence[Episode | None] | None = None,
    ) -> list[float]:
        """One score in [0, 1] for each.

        Args:
            episodes: what was done and said in each, where there are tools.

        Raises ScoreFails where nearly all scores failed, or one call after another did not return.
        """
        done: list[Episode | None] = list(episodes) if episodes is not None else [None] * len(completions)
        failed_before = self.failures
        if self.is_batch:
            scores = self._batch(list(completions), list(problems), done)
        else:
            extras = [self._extra(p, e) for p, e in zip(problems, done, strict=True)]
            calls = [(c, p.answer, x) for c, p, x in zip(completions, problems, extras, strict=True)]
            scores = self._waiting(calls) if self.is_async else [self._one(*call) for call in calls]
        self.calls += len(scores)
        self._stop_where_nearly_all_fail(len(scores), self.failures - failed_before)
        return scores

    def _stop_where_nearly_all_fail(self, calls: int, failures: int) -> None:
        recent = self._recent
        recent.append((calls, failures))
        while sum(count for count, _ in recent) - recent[0][0] >= RECENT_CALLS:
            recent.popleft()
        called, failed = (sum(column) for column in zip(*recent, strict=True))
        share = 1.0 if called < MANY_CALLS else NEARLY_ALL
        if called >= FIRST_CALLS and failed >= share * called:
            newest = "" if called == self.calls else "the newest "
            raise ScoreFails(
                f"The score {self.name} failed on {failed} of {newest}{called} completions, so nothing can be "
                f"learned from it: fix it first. {self._last}"
            )

    def _one(self, completion: str, answer: str, extra: dict[str, Any]) -> float:
        try:
            value = self._guard(self.function, completion, answer, **extra)
        except (KeyboardInterrupt, StopNow):
            raise
        except BaseException as error:
            value = error
        return self._read(value)

    def _waiting(self, calls: list[tuple[str, str, dict[str, Any]]]) -> list[float]:
        async def everyone() -> list[Any]:
            places = asyncio.Semaphore(TOGETHER)

            async def one(completion: str, answer: str, extra: dict[str, Any]) -> Any:
                async with places:
                    call = self.function(completion, answer, **extra)
                    return await asyncio.wait_for(call, self._guard.seconds)

            return await asyncio.gather(*(one(*call) for call in calls), return_exceptions=True)

        whole = Guard(self._guard.seconds * (1 + math.ceil(len(calls) / TOGETHER)))
        try:
            values = whole(_run, everyone())
        except (KeyboardInterrupt, StopNow):
            raise
        except BaseException as error:
            self._failed(error, len(calls))
            return [0.0] * len(calls)
        return [self._read(value) for value in values]

    def _batch(
        self, completions: list[str], problems: list[Problem], episodes: list[Episode | None]
    ) -> list[float]:
        columns: dict[str, Any] = {
            "prompts": [p.prompt for p in problems],
            "completions": completions,
            "answers": [p.answer for p in problems],
            "answer": [p.answer for p in problems],
            "metadata": [p.metadata for p in problems],
        }
        if any(episodes):
            columns["messages"] = [e.messages for e in episodes if e is not None]
            columns["environments"] = [e.environment for e in episodes if e is not None]
        named = {n: column for n, column in columns.items() if self._takes_all or n in self._names}
        try:
            found = self._guard(self._call_batch, named)
            values = list(found)
            if len(values) != len(completions):
                raise ValueError(f"a batch of {len(completions)} completions got {len(values)} scores")
        except (KeyboardInterrupt, StopNow):
            raise
        except BaseException as error:
            self._failed(error, len(completions))
            return [0.0] * len(completions)
        return [self._read(value) for value in values]

    def _call_batch(self, named: dict[str, Any]) -> Any:
        found = self.function(**named)
        return _run(found) if inspect.isawaitable(found) else found

    def _extra(self, problem: Problem, episode: Episode | None) -> dict[str, Any]:
        extra: dict[str, Any] = {"prompt": problem.prompt, "metadata": problem.metadata}
        if episode is not None:
            extra |= {"messages": episode.messages, "environment": episode.environment}
        return {name: value for name, value in extra.items() if name in self._names}

    def _read(self, value: Any) -> float:
        try:
            if isinstance(value, BaseException):
                raise value
            number = _number(value)
        except (KeyboardInterrupt, StopNow):
            raise
        except BaseException as error:
            self._failed(error, 1)
            return 0.0
        self._hangs = 0
        return number

    def _failed(self, error: BaseException, count: int) -> None:
        self.failures += count
        hung = isinstance(error, (OutOfTime, asyncio.TimeoutError))
        self._hangs = self._hangs + 1 if hung else 0
        said = _words(error)
        self._last = f"The last failure: {type(error).__name__}: {said[:200]}."
        if not self._shown:
            self._shown = True
            where, line, trace = _users_trace(error)
            warnings.warn_explicit(
                f"The score of {self.name} failed and counts as 0 (shown once; failures are counted).\n{trace}",
                UserWarning,
                where or self.name,
                line,
            )
        if self._hangs >= HANGS_IN_A_ROW:
            raise ScoreFails(
                f"The score {self.name} did not return within {self._guard.seconds:g} s, {self._hangs} times in "
                "a row: fix it, or give it more time with timeout=SECONDS."
            ) from None


def _run(coroutine: Any) -> Any:
    """Wait for a coroutine: in a loop of its own, in a thread where this one has a loop that runs (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(asyncio.run(coroutine))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _words(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:
        return "it has no words that can be shown"


def _number(value: Any) -> float:
    if value is None or isinstance(value, (str, bytes)):
        raise TypeError(f"a score must be a number in [0, 1], not {value!r}")
    number = float(value)
    if not (math.isfinite(number) and 0 <= number <= 1):
        raise ValueError(f"a score must be in [0, 1], not {number}")
    return number


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _users_trace(error: BaseException) -> tuple[str | None, int, str]:
    """File and line of the user's innermost frame, and the traceback from the user's first frame on."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = (__file__, Guard.__call__.__code__.co_filename)
    theirs = [frame for frame in frames if frame.filename not in ours and "/asyncio/" not in frame.filename]
    lines = [*traceback.format_list(theirs), *traceback.format_exception_only(type(error), error)]
    text = ("Traceback (most recent call last):\n" if theirs else "") + "".join(lines).rstrip()
    return (theirs[-1].filename, theirs[-1].lineno or 1, text) if theirs else (None, 1, text)
