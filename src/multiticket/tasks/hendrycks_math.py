r"""MATH: competition problems (Hendrycks et al., 2021, arXiv 2103.03874), tested on MATH-500.

From the hub (`EleutherAI/hendrycks_math`, `HuggingFaceH4/MATH-500`), or from a folder with `train.jsonl` and
`test.jsonl` whose lines have `problem` and `solution` or `answer`: the one given (`math@FOLDER`), else the one in the
environment variable MULTITICKET_MATH. The reference is `answer` where there is one, else the last `\boxed{}` of the
solution.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from multiticket.tasks.final_answer import reference_answer
from multiticket.tasks.gsm8k import MathTask, check_folder
from multiticket.tasks.sources import Problems, load_hub, read_json_lines, readable

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


class HendrycksMATH(MathTask):
    """Competition problems whose answers are numbers, formulas, intervals, sets, matrices or words."""

    name = "math"
    max_completion_tokens = 2048
    """The paper's."""

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        given = folder or os.environ.get("MULTITICKET_MATH")
        self.folder = Path(given).expanduser() if given else None
        check_folder(self.folder, "MULTITICKET_MATH", "math")

    def load(self, split: str) -> Problems:
        if self.folder is not None:
            rows = read_json_lines(self.folder / f"{split}.jsonl", ("problem",))
        else:
            instead = ": give a folder with train.jsonl and test.jsonl as math@FOLDER or in MULTITICKET_MATH"
            if split == "test":
                rows = load_hub("HuggingFaceH4/MATH-500", "test", None, instead)
            else:
                parts = [load_hub("EleutherAI/hendrycks_math", "train", name, instead) for name in SUBJECTS]
                rows = [row for part in parts for row in part]
        return readable(rows, lambda row: (row["problem"], _reference(row)), f"math {split}")


def _reference(row: dict[str, Any]) -> str:
    answer = row.get("answer")
    if isinstance(answer, str) and answer.strip():
        return answer.strip()
    if not isinstance(row.get("solution"), str):
        raise ValueError(f"The problem {row['problem'][:80]!r} has neither an answer nor a solution.")
    return reference_answer(row["solution"])
