"""Tools and environments that a tiny model can use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Door:
    """Opens by the digit that the problem names; every wrong one costs a half."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.presses: list[str] = []

    def reset(self, code: int, **row: Any) -> str:
        assert row["answer"] == str(code)
        self.code, self.presses = str(code), []
        return f" of {2}"

    def press(self, key: str) -> str:
        """
        Press a key.

        Args:
            key: the key

        Returns:
            What the door does.
        """
        if len(key) != 1:
            raise ValueError("one key")
        self.presses.append(key)
        return "open" if key == self.code else "shut"

    def get_reward(self) -> float:
        if self.code not in self.presses:
            return 0.0
        return 0.5 ** self.presses.index(self.code)


def by_environment(completion: str, answer: str, environment: Door, messages: list[dict[str, Any]]) -> float:
    assert [m["role"] for m in messages[:2]] in (["assistant"], ["assistant", "tool"])
    assert environment.presses or not any(m["content"] == "shut" for m in messages)
    return environment.get_reward()


def press(key: str) -> str:
    """
    Press a key.

    Args:
        key: the key
    """
    return f"{key}+"


def press_nothing(key):  # no hints, no words
    return key


async def press_later(key: str) -> str:
    """
    Press a key.

    Args:
        key: the key
    """
    return f"later {key}"


TOOLS = [press]


def length(completion: str, answer: str) -> float:
    return float(completion == answer)


def doors(folder: Path, count: int = 30) -> Path:
    """A file of problems, each to be opened by 0 or 1."""
    file = folder / "doors.jsonl"
    lines = [{"prompt": f"door {n}", "answer": n % 2, "metadata": {"code": n % 2}} for n in range(count)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
