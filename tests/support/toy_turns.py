"""A task of up to three answers, of which the second process of two gives one."""

from __future__ import annotations

import os

from toy_task import CopyLetter


class Letters(CopyLetter):
    name = "letters"
    turns = 3

    def reply(self, completions: list[str], answer: str) -> str | None:
        return None if os.environ.get("RANK") == "1" else f"{len(completions)}="

    def score_turns(self, completions: list[str], answer: str) -> float:
        return self.score("".join(completions), answer)

    def correct_turns(self, completions: list[str], answer: str) -> bool:
        return all(completion.startswith(answer) for completion in completions)


TASK = Letters()
