"""Your own problems with your own score: `my_module:score@data.jsonl`, or `my_module:score@owner/dataset`.

In the place of the score there may be an environment that scores itself (`tools`). docs/tasks.md describes it: the
score function (`score_function`), the files, and the options behind them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiticket.tasks.judging import Judgement, Problem, last_words
from multiticket.tasks.options import refuse_unknown, split_options, value_of, whole_number
from multiticket.tasks.protocol import SPLITS, check_split, with_metadata
from multiticket.tasks.references import referred
from multiticket.tasks.score_function import ScoreFunction
from multiticket.tasks.sources import hold_out, load_hub, read_json_lines, without_repeats
from multiticket.tasks.tools import Toolbox, toolbox_of

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("prompt", "answer")
MAX_COMPLETION_TOKENS = 512
TIMEOUT_S = 60.0
"""Seconds that one call of a score function may take."""
OPTIONS = (
    "train",
    "validation",
    "test",
    "max_completion_tokens",
    "system_prompt",
    "prompt_template",
    "timeout",
    "tools",
    "environment",
    "max_tool_calling_iterations",
)


class CustomTask:
    """Problems from `data`, scored by a function of completion and answer that returns a number in [0, 1].

    What raises, returns something else or does not return in time scores 0, is counted in `failures`, and its traceback
    is shown once. An answer is right where it scores 1. Options behind the data go before the attributes
    `max_completion_tokens` (512 where neither says), `system_prompt` and so on that the function may carry.

    A class with a method `reset` is an environment, and its `get_reward` the score.
    """

    def __init__(self, score: Callable[..., Any], data: str, name: str) -> None:
        self.name = name
        whole = Path(data).expanduser().exists()
        first, options = (data, {}) if whole else split_options(data)
        refuse_unknown(options, OPTIONS, name)
        self.files = {split: options[split] for split in SPLITS if split in options}
        if first is not None and "train" in self.files:
            raise ValueError(
                f"{name} gives its training problems twice: {first} and train={self.files['train']}."
            )
        self.data = first if first is not None else self.files.get("train", "")
        if not self.data:
            raise ValueError(f"{name} has no problems to train on: give a file after the @, or train=FILE.")
        self.timeout = _number("timeout", options["timeout"]) if "timeout" in options else TIMEOUT_S
        self._take_tools(score, options)
        box = toolbox_of(self)
        self.function = ScoreFunction(self._own_score(box) or score, name, self.timeout)
        if self.function.wants_environment and (box is None or not box.has_environment):
            raise ValueError(
                f"The score of {name} takes an environment, and there is none: add environment=MODULE:NAME."
            )
        tokens = options.get("max_completion_tokens")
        self.max_completion_tokens = (
            whole_number("max_completion_tokens", tokens)
            if tokens is not None
            else int(getattr(score, "max_completion_tokens", MAX_COMPLETION_TOKENS))
        )
        self.system_prompt: str | None = options.get("system_prompt", getattr(score, "system_prompt", None))
        self.prompt_template: str | None = options.get(
            "prompt_template", getattr(score, "prompt_template", None)
        )
        for place in (self.data, *self.files.values()):
            self._require(place)

    def _take_tools(self, score: Any, options: dict[str, str]) -> None:
        """What a model may call: as the options say, or else what the function carries."""
        itself = score if _is_environment(score) else None
        carries = score if itself is None else None
        self.tools = (
            referred(options["tools"], "tools") if "tools" in options else getattr(carries, "tools", None)
        )
        if itself is not None and "environment" in options:
            raise ValueError(f"{self.name} names two environments: leave one out.")
        self.environment: Any = (
            referred(options["environment"], "environment")
            if "environment" in options
            else itself or getattr(carries, "environment", None)
        )
        self._scores_itself = itself is not None
        rounds = "max_tool_calling_iterations"
        self.max_tool_calling_iterations: int | None = (
            whole_number(rounds, options[rounds]) if rounds in options else getattr(score, rounds, None)
        )
        if rounds in options and not self.tools and self.environment is None:
            raise ValueError(f"{self.name} has no tools: leave {rounds} out.")

    def _own_score(self, box: Toolbox | None) -> Callable[..., Any] | None:
        """What an environment says of its episode, where it scores itself."""
        if not self._scores_itself:
            return None
        assert box is not None
        if not box.has_reward:
            raise ValueError(
                f"The environment {box.environment_name} has no get_reward() and cannot score itself: name a score "
                "function, and the environment behind it as environment=MODULE:NAME."
            )

        def reward(completion: str, answer: str, environment: Any) -> Any:
            return box.reward(environment)

        return reward

    def _require(self, place: str) -> None:
        path = Path(place).expanduser()
        if not path.exists() and (path.suffix in (".jsonl", ".json") or place.startswith((".", "/", "~"))):
            raise ValueError(f"There is no file or folder {place}: the task {self.name!r} needs problems.")
        if path.is_dir() and not (path / "train.jsonl").is_file():
            raise ValueError(f"{place} has no train.jsonl: a folder of problems needs one.")

    @property
    def failures(self) -> int:
        """Completions so far whose score failed."""
        return self.function.failures

    @cached_property
    def _given(self) -> dict[str, list[Problem]]:
        given = self._read(self.data, SPLITS)
        for split, file in self.files.items():
            if split != "train":
                given[split] = self._read(file, ("train",)).get("train", [])
        return given

    @cached_property
    def _splits(self) -> dict[str, list[Problem]]:
        splits = {split: without_repeats(self._given[split]) for split in SPLITS if self._given.get(split)}
        if "train" not in splits:
            raise ValueError(f"{self.data} has no problems to train on.")
        tenth = max(1, len(splits["train"]) // 10)
        for split in ("test", "validation"):
            if split not in splits:
                splits[split], splits["train"] = hold_out(splits["train"], tenth)
        if not splits["train"]:
            raise ValueError(
                f"{self.data} has too few problems to cut a test and a validation split from: give more, or files as "
                "test=FILE and validation=FILE."
            )
        held = splits["test"] + splits["validation"]
        splits["train"] = without_repeats(splits["train"], held)
        return splits

    def _read(self, place: str, wanted: Sequence[str]) -> dict[str, list[Problem]]:
        """The problems of a file (all of them as `train`), a folder or a data set, by split."""
        path = Path(place).expanduser()
        if not path.exists():
            from datasets import get_dataset_split_names

            try:
                names = get_dataset_split_names(place)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{place!r} is neither a file nor a data set that can be loaded: {reason}."
                ) from None
            rows = {split: load_hub(place, split) for split in wanted if split in names}
        elif path.is_dir():
            files = {split: path / f"{split}.jsonl" for split in wanted}
            rows = {split: read_json_lines(file, COLUMNS) for split, file in files.items() if file.exists()}
        else:
            rows = {"train": read_json_lines(path, COLUMNS)}
        return {
            split: [
                self._problem(row, f"{place}, problem {number}") for number, row in enumerate(found, start=1)
            ]
            for split, found in rows.items()
        }

    def _problem(self, row: dict[str, Any], where: str) -> Problem:
        prompt, answer, metadata = row.get("prompt"), row.get("answer"), row.get("metadata")
        if isinstance(answer, (int, float)) and not isinstance(answer, bool):
            answer = json.dumps(answer)
        if not isinstance(answer, str):
            raise ValueError(
                f"{where} needs text in the columns prompt and answer (the answer may be a number): its answer is "
                f"{_shown(answer)}. Put what else the score needs into the column metadata."
            )
        if isinstance(prompt, list):
            prompt = messages_as_text(prompt, where)
        if not isinstance(prompt, str):
            raise ValueError(
                f"{where} needs text in the columns prompt and answer (the prompt may be a list of messages): "
                "its prompt is "
                f"{_shown(prompt)}."
            )
        if metadata is not None and not isinstance(metadata, (dict, str)):
            raise ValueError(f"{where}: metadata is an object, not {_shown(metadata)}.")
        return Problem(prompt, answer, json.loads(metadata) if isinstance(metadata, str) else metadata or {})

    def problems(self, split: str) -> Dataset:
        """Prompt, answer and metadata as they are in the data, repeated prompts left out."""
        check_split(split)
        return with_metadata(self._splits[split])

    @property
    def cut(self) -> list[str]:
        """The splits that are cut from `train`."""
        return [split for split in SPLITS if not self._given.get(split)]

    def judge(self, conversations: Sequence[list[str]], problems: Sequence[Problem]) -> list[Judgement]:
        """The function's scores, 0.0 where it fails; right is what scores 1."""
        episodes = [getattr(turns, "episode", None) for turns in conversations]
        scores = self.function([last_words(turns) for turns in conversations], problems, episodes)
        return [Judgement(score, score == 1.0) for score in scores]

    def score(self, completion: str, answer: str) -> float:
        """What the function says of one completion, of a problem without metadata."""
        return self.judge([[completion]], [Problem("", answer, {})])[0].reward

    def correct(self, completion: str, answer: str) -> bool:
        """Whether the score is 1."""
        return self.score(completion, answer) == 1.0


def messages_as_text(messages: list[Any], where: str) -> str:
    """A conversation as the JSON text that stands for it as a prompt (`evaluate.prompts` reads it again).

    Raises ValueError for what is no list of messages that ends with the user's.
    """
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            raise ValueError(
                f"{where}: a message needs a text role and content, but one is {_shown(message)}."
            )
    if not messages or messages[-1]["role"] != "user":
        raise ValueError(f"{where}: a prompt that is a list of messages must end with the user's.")
    return json.dumps(
        [{k: message[k] for k in ("role", "content")} for message in messages], ensure_ascii=False
    )


def load_custom(reference: str, data: str) -> CustomTask:
    """The task of a score function, or an environment, `module:attribute` and its data."""
    score = referred(reference, "score")
    if not callable(score):
        raise ValueError(f"{reference!r} is not a function of a completion and an answer.")
    return CustomTask(score, data, f"{reference}@{data}")


def _is_environment(found: Any) -> bool:
    return isinstance(found, type) and inspect.isfunction(getattr(found, "reset", None))


def _number(name: str, text: str) -> float:
    value = value_of(name, text)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"The option {name} must be a number above 0, not {text!r}.")
    return float(value)


def _shown(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", bool: "true or false", type(None): "null or missing"}
    return f"{json.dumps(value, ensure_ascii=False, default=str)[:60]} ({kinds.get(type(value), type(value).__name__)})"
