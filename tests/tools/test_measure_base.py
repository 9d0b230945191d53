"""Scores of a base, on a model whose answers are known."""

import torch
from datasets import Dataset

from base_tokenizer import build_tokenizer
from measure_base import SAMPLES, complete, measure

TOKENIZER = build_tokenizer()


class Scripted:
    """Generates "1" greedily, and for each prompt "3" in the first of its samples and "0" in the others."""

    device = torch.device("cpu")

    def generate(
        self, input_ids: torch.Tensor, num_return_sequences: int = 1, **settings: object
    ) -> torch.Tensor:
        rows = input_ids.repeat_interleave(num_return_sequences, 0)
        texts = ["3" if i % num_return_sequences == 0 else "0" for i in range(len(rows))]
        answers = torch.tensor([TOKENIZER(text)["input_ids"] for text in texts])
        if not settings["do_sample"]:
            answers = torch.tensor([TOKENIZER("1")["input_ids"] for _ in rows])
        return torch.cat([rows, answers, torch.full((len(rows), 1), TOKENIZER.eos_token_id)], 1)


class Counting:
    """Four problems with the answers 1, 2, 3, 4."""

    name, max_completion_tokens = "counting", 2

    def problems(self, split: str) -> Dataset:
        return Dataset.from_dict({"prompt": ["+" * n + "=" for n in range(1, 5)], "answer": list("1234")})

    def correct(self, completion: str, answer: str) -> bool:
        return completion == answer

    def score(self, completion: str, answer: str) -> float:
        return float(completion == answer)


def test_completions_are_grouped_by_prompt() -> None:
    texts = complete(Scripted(), TOKENIZER, ["1+1=", "22+2="], 2, 4)  # type: ignore[arg-type]
    assert texts == [["3", "0", "0", "0"]] * 2
    assert complete(Scripted(), TOKENIZER, ["1+1=", "22+2="], 2, 0) == [["1"], ["1"]]  # type: ignore[arg-type]


def test_shares_of_right_answers() -> None:
    scores = measure(Scripted(), TOKENIZER, Counting(), "test")  # type: ignore[arg-type]
    assert scores == {"greedy": 0.25, "pass@1": round(1 / SAMPLES / 4, 4), "pass@16": 0.25, "n": 4}
    scores = measure(Scripted(), TOKENIZER, Counting(), "test", limit=2)  # type: ignore[arg-type]
    assert scores == {"greedy": 0.5, "pass@1": 0.0, "pass@16": 0.0, "n": 2}


def test_measuring_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    measure(Scripted(), TOKENIZER, Counting(), "test")  # type: ignore[arg-type]
    assert torch.equal(torch.rand(4), expected)
