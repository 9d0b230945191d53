"""Single-turn tasksets of the verifiers library, 0.4 or newer: `verifiers:NAME@option=value,...`.

NAME is a taskset that is installed, or a module in the current folder. Its tasks are the problems, its `@vf.reward`
methods the score (their weighted sum, held within [0, 1]). What needs a container, tools or a runtime is refused.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from multiticket.tasks.custom import messages_as_text
from multiticket.tasks.judging import Judgement, Problem
from multiticket.tasks.options import split_options, value_of, whole_number
from multiticket.tasks.protocol import check_split, with_metadata
from multiticket.tasks.sources import hold_out, without_repeats

if TYPE_CHECKING:
    from datasets import Dataset

MOST_TASKS = 10_000
"""Tasks taken of a taskset, which may be endless, where `problems=N` does not say."""
MOST_HELD_OUT = 512
SCORE_S = 120.0
"""Seconds for the scores of one task; a judge that asks a server may need many."""
TOGETHER = 64
"""Scores that wait at the same time."""


class VerifiersTask:
    """The tasks of a taskset as problems; its rewards score them."""

    max_completion_tokens = 512

    cut = ("validation", "test")
    """All problems come as one."""

    def __init__(self, taskset: str, options: str = "") -> None:
        try:
            from verifiers.v1.utils.loaders import taskset_class, taskset_config_type
        except ImportError:
            raise ValueError(
                'verifiers:NAME needs verifiers 0.4 or newer: pip install "multiticket[verifiers]".'
            ) from None
        self.name = f"verifiers:{taskset}" + (f"@{options}" if options else "")
        self.failures = 0
        self.system_prompt: str | None = None
        first, given = split_options(options) if options else (None, {})
        if first is not None:
            raise ValueError(f"Options of {self.name} are written name=value, not {first!r}.")
        self._most = whole_number("problems", given.pop("problems")) if "problems" in given else MOST_TASKS
        if "max_completion_tokens" in given:
            self.max_completion_tokens = whole_number(
                "max_completion_tokens", given.pop("max_completion_tokens")
            )
        values = {name: value_of(name, text) for name, text in given.items()}
        try:
            config = taskset_config_type(taskset)(id=taskset, **values)
            self._taskset = taskset_class(taskset)(config)
        except Exception as error:  # the loader, pydantic and the taskset itself each have their own
            raise ValueError(
                f"Cannot load the taskset {taskset!r}: {' '.join(str(error).split())[:300]}"
            ) from None

    @cached_property
    def _tasks(self) -> list[Any]:
        try:
            tasks = list(self._taskset.take(self._most))
        except Exception as error:
            raise ValueError(
                f"{self.name} cannot make its tasks: {type(error).__name__}: {error}."
            ) from error
        for task in tasks:
            self._refuse(task)
        if {task.data.system_prompt for task in tasks} == {tasks[0].data.system_prompt if tasks else None}:
            self.system_prompt = tasks[0].data.system_prompt if tasks else None
        return tasks

    def _refuse(self, task: Any) -> None:
        import verifiers.v1 as vf

        needs = [
            "a container" if task.NEEDS_CONTAINER or task.data.image else "",
            "tools" if type(task).toolsets(task.config) else "",
            "a runtime for its setup" if type(task).setup is not vf.Task.setup else "",
            "a runtime for its score" if any(map(_needs_runtime, task.hooks("reward"))) else "",
            "a user who begins" if task.data.prompt is None else "",
        ]
        if any(needs):
            raise ValueError(
                f"{self.name} needs {' and '.join(filter(None, needs))}; only single-turn tasksets in one "
                "process are supported."
            )

    @cached_property
    def _splits(self) -> dict[str, list[Problem]]:
        tasks = self._tasks
        problems = without_repeats(Problem(self._prompt(t), "", {"index": i}) for i, t in enumerate(tasks))
        if len(problems) < 3:
            raise ValueError(
                f"{self.name} has {len(problems)} different tasks, too few for train, validation and test."
            )
        held = max(1, min(MOST_HELD_OUT, len(problems) // 10))
        test, rest = hold_out(problems, held)
        validation, train = hold_out(rest, held)
        return {"train": train, "validation": validation, "test": test}

    def _prompt(self, task: Any) -> str:
        said, system = task.data.prompt, task.data.system_prompt
        shared = system == self.system_prompt
        if isinstance(said, str) and shared:
            return said
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else [_plain(m) for m in said]
        if not shared and system:
            messages.insert(0, {"role": "system", "content": system})
        return messages_as_text(messages, self.name)

    def problems(self, split: str) -> Dataset:
        """The tasks' prompts; the answer stays with the taskset, and the metadata says which task it is."""
        check_split(split)
        return with_metadata(self._splits[split])

    def judge(self, conversations: Sequence[list[str]], problems: Sequence[Problem]) -> list[Judgement]:
        """The weighted sum of the taskset's rewards, within [0, 1]; what fails scores 0 and is counted."""
        tasks = [self._tasks[problem.metadata["index"]] for problem in problems]

        async def everyone() -> list[Any]:
            places = asyncio.Semaphore(TOGETHER)

            async def one(task: Any, completion: str) -> float:
                async with places:
                    return await asyncio.wait_for(_reward(task, completion), SCORE_S)

            calls = [one(task, turns[0]) for task, turns in zip(tasks, conversations, strict=True)]
            return await asyncio.gather(*calls, return_exceptions=True)

        return [self._read(found) for found in _loop.run(everyone())]

    def _read(self, found: Any) -> Judgement:
        if isinstance(found, BaseException):
            if not self.failures:
                warnings.warn(f"A reward of {self.name} failed and counts as 0: {found!r}.", stacklevel=2)
            self.failures += 1
            return Judgement(0.0, False)
        reward = min(1.0, max(0.0, found))
        return Judgement(reward, reward == 1.0)

    def score(self, completion: str, answer: str) -> float:
        """0.0: which task it is stands in the metadata, so that only `judge` can say more."""
        return 0.0

    def correct(self, completion: str, answer: str) -> bool:
        """False, as `score` is 0."""
        return False


async def _reward(task: Any, completion: str) -> float:
    import verifiers.v1 as vf
    from verifiers.v1.graph import MessageNode

    said = [vf.UserMessage(content=task.data.prompt_text), vf.AssistantMessage(content=completion)]
    trace = vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=[MessageNode(message=said[0]), MessageNode(parent=0, message=said[1], sampled=True)],
    )
    await task.score(trace)
    return float(sum(reward.value for reward in trace.rewards.values() if reward))


def _needs_runtime(function: Any) -> bool:
    runtime = inspect.signature(function).parameters.get("runtime")
    return runtime is not None and runtime.default is inspect.Parameter.empty


def _plain(message: Any) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


class _Loop:
    """One event loop for all rewards, in a thread of its own: clients that a taskset keeps stay usable."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Any) -> Any:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


_loop = _Loop()
