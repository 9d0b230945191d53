"""How a model is asked: in words where it chats, with what prompts, and with which examples before.

A task says how it wants to be asked by attributes that it may have: `in_chat()` (itself, for models with a chat
template), `system_prompt`, `prompt_template` and `examples`. A run's settings go before them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from multiticket.tasks.sources import read_json_lines

AnyTask = TypeVar("AnyTask")
PLACE = "{prompt}"


@dataclass(frozen=True)
class Asking:
    """What a run says about its prompts; what is None is left to the task."""

    system_prompt: str | None = None
    """Said first; "" for none."""
    prompt_template: str | None = None
    """Stands around each prompt, in the place of `{prompt}`."""
    examples: int | str | None = None
    """Solved problems that come before, as turns of a conversation: how many of the training problems, or a file."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is told, such as `enable_thinking: false`."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Asking:
        """What a run's settings, or a ticket's provenance, say."""
        grpo = settings.get("grpo")
        options = grpo.get("chat_template_kwargs") if isinstance(grpo, Mapping) else None
        return cls(
            settings.get("system_prompt"),
            settings.get("prompt_template"),
            settings.get("examples"),
            options if isinstance(options, Mapping) else {},
        )

    def over(self, other: Asking) -> Asking:
        """This one, and what it leaves open as the other says."""
        return Asking(
            self.system_prompt if self.system_prompt is not None else other.system_prompt,
            self.prompt_template if self.prompt_template is not None else other.prompt_template,
            self.examples if self.examples is not None else other.examples,
            self.template_options or other.template_options,
        )

    def check(self) -> None:
        """Raises ValueError for a template without a place for the prompt, or examples that cannot be."""
        if self.prompt_template is not None and PLACE not in self.prompt_template:
            raise ValueError(
                f"A prompt template must contain {PLACE} for the problem, but {self.prompt_template!r} has none."
            )
        if isinstance(self.examples, int) and self.examples < 0:
            raise ValueError(f"examples is a number of solved problems or a file, not {self.examples}.")
        if isinstance(self.examples, str):
            _read_examples(self.examples)


def asked(task: AnyTask, tokenizer: Any, asking: Asking | None = None) -> AnyTask:
    """The task as a model with this tokenizer is asked it: in words where there is a chat template.

    Raises ValueError as `Asking.check` does.
    """
    asking = asking or Asking()
    asking.check()
    if tokenizer.chat_template and hasattr(task, "in_chat"):
        task = task.in_chat()
    changes: dict[str, Any] = {}
    if asking.system_prompt is not None:
        changes["system_prompt"] = asking.system_prompt or None
    if asking.prompt_template is not None:
        changes["prompt_template"] = asking.prompt_template
    if asking.examples:
        changes["examples"] = _examples(task, asking.examples)
    if asking.template_options:
        changes["template_options"] = dict(asking.template_options)
    if not changes:
        return task
    task = copy.copy(task)
    for name, value in changes.items():
        setattr(task, name, value)
    return task


def _examples(task: Any, wanted: int | str) -> list[tuple[str, str]]:
    """Prompts and answers as the model should give them: a task may have `example(answer)` for that."""
    if isinstance(wanted, str):
        return _read_examples(wanted)
    problems = task.problems("train")
    if len(problems) < wanted:
        raise ValueError(
            f"The task {task.name} has {len(problems)} training problems, so no {wanted} examples."
        )
    first = problems.select(range(wanted))
    write = getattr(task, "example", lambda answer: answer)
    return [(str(p), str(write(a))) for p, a in zip(first["prompt"], first["answer"], strict=True)]


def _read_examples(file: str) -> list[tuple[str, str]]:
    rows = read_json_lines(Path(file).expanduser(), ("prompt", "answer"))
    for row in rows:
        if not isinstance(row["prompt"], str) or not isinstance(row["answer"], str):
            raise ValueError(f"{file}: an example needs a text prompt and answer, not {str(row)[:80]}.")
    return [(row["prompt"], row["answer"]) for row in rows]
