"""Your own problems with your own score: `my_module:score@data.jsonl`, or `my_module:score@owner/dataset`.

The problems have the string columns `prompt` and `answer`. They are a file of JSON lines, a folder of such files
named after their splits, or a data set of the hub. A `validation` or `test` split that is missing is cut from
`train`, a tenth of it each, by a hash of the prompt.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiticket.tasks.protocol import SPLITS, as_dataset, check_split
from multiticket.tasks.sources import Problems, hold_out, load_hub, read_json_lines, without_repeats

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("prompt", "answer")
MAX_COMPLETION_TOKENS = 512


class OwnTask:
    """Problems from `data`, scored by `score(completion, answer)`, which returns a number in [0, 1].

    What raises, or returns something else, scores 0, is counted in `failures`, and warned of once. How long it takes
    is up to it. An answer is right where it scores 1. The function may carry attributes `max_completion_tokens`
    (512 where it does not) and `system_prompt`.
    """

    def __init__(self, score: Callable[[str, str], Any], data: str, name: str) -> None:
        self.name = name
        self.data = data
        self.failures = 0
        self._score = score
        self.max_completion_tokens = int(getattr(score, "max_completion_tokens", MAX_COMPLETION_TOKENS))
        self.system_prompt: str | None = getattr(score, "system_prompt", None)
        path = Path(data).expanduser()
        self.path = path if path.exists() else None
        if self.path is None and (path.suffix in (".jsonl", ".json") or data.startswith((".", "/", "~"))):
            raise ValueError(f"There is no file or folder {data}: the task {name!r} needs problems.")
        if self.path is not None and self.path.is_dir() and not (self.path / "train.jsonl").is_file():
            raise ValueError(f"{data} has no train.jsonl: a folder of problems needs one.")

    @cached_property
    def _splits(self) -> dict[str, Problems]:
        given = self._read()
        splits = {split: without_repeats(given[split]) for split in SPLITS if given.get(split)}
        if "train" not in splits:
            raise ValueError(f"{self.data} has no problems to train on.")
        tenth = max(1, len(splits["train"]) // 10)
        for split in ("test", "validation"):
            if split not in splits:
                splits[split], splits["train"] = hold_out(splits["train"], tenth)
        held = splits["test"] + splits["validation"]
        splits["train"] = without_repeats(splits["train"], held)
        return splits

    def _read(self) -> dict[str, Problems]:
        if self.path is None:
            from datasets import get_dataset_split_names

            try:
                names = get_dataset_split_names(self.data)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{self.data!r} is neither a file nor a data set that can be loaded: {reason}."
                ) from None
            rows = {split: load_hub(self.data, split) for split in SPLITS if split in names}
        elif self.path.is_dir():
            files = {split: self.path / f"{split}.jsonl" for split in SPLITS}
            rows = {split: read_json_lines(file, COLUMNS) for split, file in files.items() if file.exists()}
        else:
            rows = {"train": read_json_lines(self.path, COLUMNS)}
        return {split: [self._problem(row) for row in found] for split, found in rows.items()}

    def _problem(self, row: dict[str, Any]) -> tuple[str, str]:
        for column in COLUMNS:
            if not isinstance(row.get(column), str):
                raise ValueError(
                    f"{self.data} needs text in the columns prompt and answer: {column} is missing."
                )
        return row["prompt"], row["answer"]

    def problems(self, split: str) -> Dataset:
        """Prompt and answer as they are in the data, repeated prompts left out."""
        check_split(split)
        return as_dataset(self._splits[split])

    def score(self, completion: str, answer: str) -> float:
        """What the function says, or 0.0 where it does not say a number in [0, 1]."""
        try:
            value = float(self._score(completion, answer))
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"a score must be in [0, 1], not {value}")
        except Exception as error:
            if not self.failures:
                warnings.warn(f"The score of {self.name} failed and counts as 0: {error!r}", stacklevel=2)
            self.failures += 1
            return 0.0
        return value

    def correct(self, completion: str, answer: str) -> bool:
        """Whether the score is 1."""
        return self.score(completion, answer) == 1.0


def load_own(reference: str, data: str) -> OwnTask:
    """The task of a score function `module:attribute` and its data."""
    module_name, _, attribute = reference.partition(":")
    try:
        score = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Cannot load the score {reference!r}: {error}.") from error
    if not callable(score):
        raise ValueError(f"{reference!r} is not a function of a completion and an answer.")
    return OwnTask(score, data, f"{reference}@{data}")
