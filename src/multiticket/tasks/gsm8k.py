"""GSM8K: grade-school word problems with a number for an answer (Cobbe et al., 2021, arXiv 2110.14168).

From `openai/gsm8k` on the hub, or from a folder with the original `train.jsonl` and `test.jsonl`: the one given
(`gsm8k@FOLDER`), else the one in the environment variable MULTITICKET_GSM8K.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from multiticket.tasks.final_answer import reference_answer
from multiticket.tasks.math_answers import AnswerChecks
from multiticket.tasks.math_checker import require_math_verify
from multiticket.tasks.protocol import as_dataset, check_split
from multiticket.tasks.sources import Problems, hold_out, load_hub, read_json_lines, readable, without_repeats

if TYPE_CHECKING:
    from datasets import Dataset

VALIDATION_PROBLEMS = 512
SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."
"""As the verifiers library's gsm8k and math environments ask."""


class MathTask:
    """Problems scored 1 where the last finished answer equals the reference as mathematics, else 0."""

    name: str
    max_completion_tokens: int
    system_prompt = SYSTEM_PROMPT
    cut = ("validation",)
    """Splits that are cut from `train`."""

    def __init__(self) -> None:
        require_math_verify()
        self._checks = AnswerChecks()

    def load(self, split: str) -> Problems:
        """The problems of `train` (validation included) or `test`, with the bare reference answers."""
        raise NotImplementedError

    @cached_property
    def _train_and_validation(self) -> tuple[Problems, Problems]:
        test = self.load("test")
        validation, train = hold_out(without_repeats(self.load("train"), test), VALIDATION_PROBLEMS)
        return train, validation

    def problems(self, split: str) -> Dataset:
        """The prompt is the problem's text. 512 problems of the training split, chosen by hash, are `validation`."""
        check_split(split)
        if split == "test":
            return as_dataset(self.load("test"))
        return as_dataset(self._train_and_validation[split == "validation"])

    def score(self, completion: str, answer: str) -> float:
        """1.0 where `correct`, else 0.0."""
        return float(self.correct(completion, answer))

    def correct(self, completion: str, answer: str) -> bool:
        r"""Whether the last `\\boxed{}`, or what follows the last `####`, equals `answer` as mathematics."""
        return self._checks.correct(completion, answer)

    @property
    def failures(self) -> int:
        """Completions so far on which math-verify crashed or ran out of time."""
        return self._checks.failures


class GSM8K(MathTask):
    """Word problems whose answers are numbers."""

    name = "gsm8k"
    max_completion_tokens = 1024
    """The paper's."""

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        given = folder or os.environ.get("MULTITICKET_GSM8K")
        self.folder = Path(given).expanduser() if given else None
        check_folder(self.folder, "MULTITICKET_GSM8K", "gsm8k")

    def load(self, split: str) -> Problems:
        if self.folder is not None:
            rows = read_json_lines(self.folder / f"{split}.jsonl", ("question", "answer"))
        else:
            instead = ": give a folder with the original files as gsm8k@FOLDER or in MULTITICKET_GSM8K"
            rows = load_hub("openai/gsm8k", split, "main", instead)
        return readable(
            rows, lambda row: (row["question"], reference_answer(row["answer"])), f"gsm8k {split}"
        )


def check_folder(folder: Path | None, variable: str, task: str) -> None:
    """Raises ValueError for a folder without the files of its splits."""
    if folder is None:
        return
    for file in ("train.jsonl", "test.jsonl"):
        if not (folder / file).is_file():
            raise ValueError(
                f"{folder / file} does not exist: give a folder with train.jsonl and test.jsonl as {task}@FOLDER "
                f"or in {variable}."
            )
