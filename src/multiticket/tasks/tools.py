"""Tools that a model may call while it answers, as TRL's `tools` and `environment_factory` take them.

A tool is a Python function with type hints and a docstring that describes it and its arguments (Google's style). An
environment is a class without arguments: `reset()` begins an episode, all other public methods are tools, and
`get_reward()`, which is none, may say what the episode is worth. A task has them as attributes:

| attribute | what it is |
|---|---|
| `tools` | a list of functions |
| `environment` | a class, or a function that makes an environment |
| `max_tool_calling_iterations` | after so many rounds of calls the answer ends; None: see `ROUNDS` |
| `timeout` | seconds that one call may take |
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from multiticket.tasks.guarded import Guard, OutOfTime
from multiticket.tasks.protocol import MultiTurnTask

if TYPE_CHECKING:
    from multiticket.tasks.judging import Problem

ROUNDS = 255
"""Rounds of calls in one answer, where the task does not say; `max_completion_tokens` ends it long before."""
TIMEOUT_S = 60.0
NO_TOOLS = ("reset", "get_reward")
"""Public methods of an environment that are no tools."""


def toolbox_of(task: Any) -> Toolbox | None:
    """The tools of a task, the same object each time; None for a task without.

    Raises ValueError for tools that cannot be: see `Toolbox`.
    """
    functions, environment = getattr(task, "tools", None), getattr(task, "environment", None)
    if not functions and environment is None:
        return None
    if isinstance(task, MultiTurnTask):
        raise ValueError(f"The task {task.name} has turns and tools: a task can have one of them.")
    if callable(functions):
        functions = (functions,)
    if not isinstance(functions, (list, tuple, type(None))) or not all(map(callable, functions or ())):
        raise ValueError(f"The tools of {task.name} must be a list of functions, not {functions!r}.")
    if environment is not None and not callable(environment):
        raise ValueError(
            f"The environment of {task.name} must be a class without arguments, not {environment!r:.60}."
        )
    rounds = getattr(task, "max_tool_calling_iterations", None)
    seconds = float(getattr(task, "timeout", TIMEOUT_S))
    return _toolbox(tuple(functions or ()), environment, ROUNDS if rounds is None else int(rounds), seconds)


@cache
def _toolbox(
    functions: tuple[Callable[..., Any], ...], environment: Any, rounds: int, seconds: float
) -> Toolbox:
    return Toolbox(functions, environment, rounds, seconds)


class Toolbox:
    """Functions and environments, of which each answer under way has one of its own.

    Environments are made once and reset often, as TRL does: a constructor may connect to a server.

    Raises ValueError for an environment that cannot be made or has no `reset`, for a tool without a name, and for two
    of one name.
    """

    def __init__(
        self,
        functions: Sequence[Callable[..., Any]],
        environment: Callable[[], Any] | None = None,
        rounds: int = ROUNDS,
        seconds: float = TIMEOUT_S,
    ) -> None:
        if not 1 <= rounds <= ROUNDS:
            raise ValueError(f"max_tool_calling_iterations must be from 1 to {ROUNDS}, not {rounds}.")
        self.functions = tuple(functions)
        self.rounds = rounds
        self.guard = Guard(seconds)
        self.loop = _Loop()
        self._make = environment
        self._made: list[Any] = []
        if environment is not None:
            self._made.append(self._new())
            if not inspect.isfunction(getattr(type(self._made[0]), "reset", None)):
                raise ValueError(f"The environment {self.environment_name} needs a method reset().")
        names = [_name(tool) for tool in self._tools(0)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"Two tools are called {name}: give each a name of its own.")
        if not names:
            raise ValueError(
                f"The environment {self.environment_name} has no public method for a model to call."
            )

    @property
    def has_environment(self) -> bool:
        return self._make is not None

    @property
    def environment_name(self) -> str:
        return type(self._made[0]).__name__ if self._made else _name(self._make)

    @property
    def has_reward(self) -> bool:
        """Whether the environments say what an episode is worth."""
        return self.has_environment and inspect.isfunction(getattr(type(self._made[0]), "get_reward", None))

    def reward(self, environment: Any) -> Any:
        """What an environment's `get_reward` returns."""
        found = environment.get_reward()
        return self.loop.run(found) if inspect.iscoroutine(found) else found

    @cached_property
    def schemas(self) -> list[dict[str, Any]]:
        """What a model is told of each tool, as JSON schemas. ValueError where a tool lacks hints or a docstring."""
        from transformers.utils import get_json_schema

        found = []
        for tool in self._tools(0):
            try:
                found.append(get_json_schema(tool))
            except Exception as error:
                said = " ".join(str(error).split()).rstrip(".")
                raise ValueError(
                    f"The tool {_name(tool)} cannot be described to a model: {said}. It needs type hints, and a "
                    "docstring with a section `Args:` that has a line `name: words` for each argument."
                ) from None
        return found

    def open(self, problems: Sequence[Problem]) -> list[Episode]:
        """An episode of each problem. Those opened before are over: their environments are reset.

        Raises ValueError where `reset` fails, or returns anything but text or None.
        """
        return [self._open(place, problem) for place, problem in enumerate(problems)]

    def _open(self, place: int, problem: Problem) -> Episode:
        if self._make is None:
            return Episode(self, None, None, self._by_name(place))
        while len(self._made) <= place:
            self._made.append(self._new())
        environment = self._made[place]
        given = {**problem.metadata, **problem._asdict()}
        try:
            observed = self.guard(environment.reset, **_taken(environment.reset, given))
        except (Exception, SystemExit, OutOfTime) as error:
            raise ValueError(
                f"reset() of the environment {self.environment_name} failed on the problem {problem.prompt[:60]!r}: "
                f"{type(error).__name__}: {error}."
            ) from error
        if observed is not None and not isinstance(observed, str):
            raise ValueError(
                f"reset() of the environment {self.environment_name} must return text or None, not {observed!r:.60}."
            )
        return Episode(self, environment, observed, self._by_name(place))

    def _new(self) -> Any:
        assert self._make is not None
        try:
            return self._make()
        except Exception as error:
            raise ValueError(
                f"The environment {_name(self._make)} cannot be made: {type(error).__name__}: {error}."
            ) from error

    def _tools(self, place: int) -> list[Callable[..., Any]]:
        """The functions, and the methods of one environment."""
        if self._make is None:
            return list(self.functions)
        environment = self._made[place]
        found = inspect.getmembers(type(environment), predicate=inspect.isfunction)
        methods = [name for name, _ in found if name not in NO_TOOLS and not name.startswith("_")]
        return [*self.functions, *(getattr(environment, name) for name in methods)]

    def _by_name(self, place: int) -> dict[str, Callable[..., Any]]:
        return {_name(tool): tool for tool in self._tools(place)}


class Episode:
    """One answer under way: what it has to do with, and what was said in it."""

    def __init__(
        self, box: Toolbox, environment: Any, observation: str | None, tools: dict[str, Callable[..., Any]]
    ) -> None:
        self.environment = environment
        """Its own one; None where the task has functions alone."""
        self.observation = observation
        """What `reset` returned, which is said after the problem."""
        self.messages: list[dict[str, Any]] = []
        """Of the model and of the tools, in order, after the prompt."""
        self.calls = 0
        self.failed = 0
        """Calls that raised, took too long, or were of no tool."""
        self._box = box
        self._tools = tools

    @property
    def last_words(self) -> str:
        """What the model said last, without its calls."""
        said = [message for message in self.messages if message["role"] == "assistant"]
        return str(said[-1].get("content") or "") if said else ""

    def answer(self, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages of the called tools, in the order of the calls, those of async tools last.

        A call that fails says so to the model: `{'error': ...}`, in TRL's words.
        """
        found: list[tuple[str, Any]] = []
        waiting: list[tuple[str, Callable[..., Any], Any]] = []
        for call in calls:
            function = call.get("function") or call
            name, arguments = str(function.get("name", "unknown")), function.get("arguments") or {}
            self.calls += 1
            tool = self._tools.get(name)
            if tool is None:
                found.append((name, self._error(f"Tool {name} not found.")))
            elif inspect.iscoroutinefunction(tool):
                waiting.append((name, tool, arguments))
            else:
                found.append((name, self._called(tool, arguments)))
        found += zip([name for name, _, _ in waiting], self._waited(waiting), strict=True)
        said = [{"role": "tool", "name": name, "content": str(result)} for name, result in found]
        self.messages += said
        return said

    def _called(self, tool: Callable[..., Any], arguments: Any) -> Any:
        try:
            return self._box.guard(tool, **arguments)
        except (Exception, SystemExit, OutOfTime) as error:
            return self._error(str(error))

    def _waited(self, waiting: list[tuple[str, Callable[..., Any], Any]]) -> list[Any]:
        async def call(tool: Callable[..., Any], arguments: Any) -> Any:
            return await asyncio.wait_for(tool(**arguments), self._box.guard.seconds)

        async def everyone() -> list[Any]:
            return await asyncio.gather(*(call(t, a) for _, t, a in waiting), return_exceptions=True)

        results = self._box.loop.run(everyone()) if waiting else []
        return [self._error(str(one)) if isinstance(one, BaseException) else one for one in results]

    def _error(self, words: str) -> dict[str, str]:
        self.failed += 1
        return {"error": words}


class _Loop:
    """An event loop in a thread of its own, begun when it is first needed: what waits in it may stay connected."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What it returns, or raises."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _name(tool: Any) -> str:
    return str(getattr(tool, "__name__", type(tool).__name__))


def _taken(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments those that a function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return given
    return {parameter.name: given[parameter.name] for parameter in parameters if parameter.name in given}
