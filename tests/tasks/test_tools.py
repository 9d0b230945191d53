"""What a model may call: functions, environments, and whatever they do."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import toy_tools

from multiticket import tasks
from multiticket.tasks.judging import Problem, Turns, last_words
from multiticket.tasks.tools import Toolbox, toolbox_of

PROBLEM = Problem("door 1", "1", {"code": 1})


@pytest.fixture
def doors(tmp_path: Path) -> Path:
    return toy_tools.doors(tmp_path)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def answers(box: Toolbox, *calls: dict[str, Any]) -> list[str]:
    (episode,) = box.open([PROBLEM])
    return [message["content"] for message in episode.answer(calls)]


def test_an_environments_methods_are_its_tools() -> None:
    box = Toolbox([toy_tools.press_later], toy_tools.Door)
    assert [schema["function"]["name"] for schema in box.schemas] == ["press_later", "press"]
    first, second = box.open([PROBLEM, PROBLEM])
    assert (first.observation, first.environment is second.environment) == (" of 2", False)
    said = first.answer([call("press_later", key="9"), call("press", key="1"), call("press", key="12")])
    assert [one["content"] for one in said] == ["open", "{'error': 'one key'}", "later 9"]
    assert (first.calls, first.failed, first.messages) == (3, 1, said)
    assert (first.environment.get_reward(), second.environment.get_reward()) == (1.0, 0.0)
    again, _ = box.open([PROBLEM, PROBLEM])
    assert again.environment is first.environment
    assert again.environment.presses == []


def test_a_call_that_cannot_be_is_answered_with_an_error() -> None:
    box = Toolbox([toy_tools.press])
    missing, unknown = answers(box, call("press"), call("open"))
    assert "missing 1 required positional argument" in missing
    assert unknown == "{'error': 'Tool open not found.'}"
    assert "unknown" in answers(box, {"type": "other"})[0]


def test_a_tool_can_do_to_a_run_what_a_score_can() -> None:
    def leave(code: int) -> None:
        sys.exit(code)

    def draw(n: int) -> float:
        random.seed(n)
        return random.random()

    def hang(n: int) -> None:
        time.sleep(5)

    async def hang_later(n: int) -> None:
        await asyncio.sleep(5)

    before = random.getstate()
    box = Toolbox([leave, draw, hang, hang_later], seconds=0.2)
    started = time.monotonic()
    said = answers(box, call("leave", code=3), call("draw", n=1), call("hang", n=1), call("hang_later", n=1))
    assert said[0] == "{'error': '3'}"
    assert float(said[1]) == random.Random(1).random()
    assert "longer than 0.2 s" in said[2]
    assert "error" in said[3]
    assert time.monotonic() - started < 3
    assert random.getstate() == before


def test_reset_takes_what_it_names() -> None:
    class Named:
        def reset(self, metadata: dict[str, int]) -> None:
            assert metadata == {"code": 1}

        def look(self) -> str:
            """Look."""
            return "dark"

    (episode,) = Toolbox([], Named).open([PROBLEM])
    assert episode.observation is None


class Broken(toy_tools.Door):
    def reset(self, **row: Any) -> Any:
        raise KeyError("no door")


class Numbers(toy_tools.Door):
    def reset(self, **row: Any) -> Any:
        return 3


class Mute:
    def reset(self) -> None:
        pass


class Unresettable:
    def look(self) -> str:
        """Look."""
        return ""


class NeedsMore(toy_tools.Door):
    def __init__(self, server: str) -> None:
        pass


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            lambda: Toolbox([], Broken).open([PROBLEM]),
            r"reset\(\) of the environment Broken failed.*'door 1'",
        ),
        (lambda: Toolbox([], Numbers).open([PROBLEM]), "must return text or None, not 3"),
        (lambda: Toolbox([], Mute), "no public method"),
        (lambda: Toolbox([], Unresettable), "needs a method reset"),
        (lambda: Toolbox([], NeedsMore), "NeedsMore cannot be made"),
        (lambda: Toolbox([toy_tools.press], toy_tools.Door), "Two tools are called press"),
        (lambda: Toolbox([toy_tools.press], rounds=0), "from 1 to 255"),
        (lambda: Toolbox([toy_tools.press_nothing]).schemas, "press_nothing cannot be described.*docstring"),
    ],
)
def test_mistakes_are_said_in_one_sentence(made: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toy_tools:by_environment@{}", "takes an environment, and there is none"),
        ("toy_tools:length@{},tools=toy_tools:NONE", "Cannot load the tools 'toy_tools:NONE'"),
        ("toy_tools:length@{},environment=toy_tools:TOOLS", "must be a class without arguments"),
        ("toy_tools:length@{},tools=toy_tools:__name__", "must be a list of functions"),
        ("toy_tools:Door@{},environment=toy_tools:Door", "names two environments"),
        ("toy_tools:length@{},max_tool_calling_iterations=3", "has no tools"),
    ],
)
def test_options_that_cannot_be_are_refused(doors: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tasks.get(name.format(doors))


def test_a_self_scoring_environment_needs_a_reward(doors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Mute):
        def look(self) -> str:
            """Look."""
            return ""

    monkeypatch.setattr(toy_tools, "Silent", Silent, raising=False)
    with pytest.raises(ValueError, match=r"Silent has no get_reward\(\)"):
        tasks.get(f"toy_tools:Silent@{doors}")


def test_turns_and_tools_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.get("alphabet_sort_turns")
    monkeypatch.setattr(task, "tools", [toy_tools.press], raising=False)
    with pytest.raises(ValueError, match="has turns and tools"):
        toolbox_of(task)


def test_a_score_may_carry_its_tools(doors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_tools.length, "tools", toy_tools.TOOLS, raising=False)
    task = tasks.get(f"toy_tools:length@{doors}")
    assert [schema["function"]["name"] for schema in toolbox_of(task).schemas] == ["press"]  # type: ignore[union-attr]
    assert toolbox_of(tasks.get("arithmetic")) is None


async def _later(environment: Any) -> float:
    await asyncio.sleep(0)
    return environment.code == "1"


def test_what_is_scored(doors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(toy_tools.Door):
        async def get_reward(self) -> float:  # type: ignore[override]
            return float(await _later(self))

    monkeypatch.setattr(toy_tools, "Later", Later, raising=False)
    for name in ("Door", "Later", "by_environment"):
        more = ",environment=toy_tools:Door" if name == "by_environment" else ""
        task = tasks.get(f"toy_tools:{name}@{doors}{more}")
        (episode,) = toolbox_of(task).open([PROBLEM])  # type: ignore[union-attr]
        episode.messages.append({"role": "assistant", "content": "", "tool_calls": [call("press", key="1")]})
        episode.answer([call("press", key="1")])
        episode.messages.append({"role": "assistant", "content": "done"})
        turns = Turns(["<call>1</call>", "done"])
        turns.episode = episode
        assert last_words(turns) == "done"
        assert tasks.judge(task, [turns], [PROBLEM]) == [tasks.Judgement(1.0, True)]
    batch: dict[str, Any] = {}

    def score(completions: list[str], environments: list[Any], messages: list[Any]) -> list[float]:
        batch.update(completions=completions, environments=environments, messages=messages)
        return [0.5]

    monkeypatch.setattr(toy_tools, "batch", score, raising=False)
    task = tasks.get(f"toy_tools:batch@{doors},environment=toy_tools:Door")
    assert tasks.judge(task, [turns], [PROBLEM]) == [tasks.Judgement(0.5, False)]
    assert batch == {
        "completions": ["done"],
        "environments": [episode.environment],
        "messages": [episode.messages],
    }
