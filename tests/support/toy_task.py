"""A task whose reward any model can raise at once: write the letter that the prompt names."""

from __future__ import annotations

from typing import Any


class CopyLetter:
    name = "copy_letter"
    max_completion_tokens = 4

    def problems(self, split: str) -> Any:
        from datasets import Dataset

        first = {"train": 0, "validation": 1, "test": 2}[split]
        numbers = range(first, first + 3 * 40, 3)
        prompts = [f"{n % 10}{n // 10 % 10}=" for n in numbers]
        return Dataset.from_dict({"prompt": prompts, "answer": ["ab"[n % 2] for n in numbers]})

    def score(self, completion: str, answer: str) -> float:
        return completion.count(answer) / max(len(completion), 1)

    def correct(self, completion: str, answer: str) -> bool:
        return completion.startswith(answer)


TASK = CopyLetter()
