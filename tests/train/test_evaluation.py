from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_task import TASK

from multiticket.config import EvalConfig
from multiticket.train.evaluation import complete, evaluate, stop_tokens
from multiticket.train.models import load_model


@pytest.fixture(scope="module")
def toy(toy_model_folder: Path) -> tuple[Any, Any]:
    return load_model(str(toy_model_folder))


def _greedy_by_hand(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """One prompt, no padding, no cache, no generate."""
    ids = tokenizer(text=prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_padding_and_batching_change_no_greedy_completion(toy: tuple[Any, Any]) -> None:
    model, tokenizer = toy
    prompts = ["1=", "0123456789=", "42=", "7", "987654321012345678="]
    expected = [_greedy_by_hand(model, tokenizer, prompt, 8) for prompt in prompts]
    assert len(set(expected)) > 1
    assert complete(model, tokenizer, prompts, 8, batch_size=2) == expected
    assert complete(model, tokenizer, prompts, 8, batch_size=5) == expected


def test_sampled_tokens_follow_the_models_distribution(toy: tuple[Any, Any]) -> None:
    model, tokenizer = toy
    prompt, draws, temperature = "12=", 4000, 0.7
    with torch.no_grad():
        logits = model(**tokenizer(text=[prompt], return_tensors="pt")).logits[0, -1]
    expected = (logits / temperature).softmax(-1)
    torch.manual_seed(0)
    drawn = complete(model, tokenizer, [prompt] * draws, 1, temperature, batch_size=1000)
    letters = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "0123456789=ab"}
    for letter, token in letters.items():
        p = float(expected[token])
        assert abs(drawn.count(letter) / draws - p) < 4 * (p * (1 - p) / draws) ** 0.5


def test_evaluation_repeats_and_leaves_the_random_state_alone(toy: tuple[Any, Any]) -> None:
    model, tokenizer = toy
    settings = EvalConfig(problems=10, samples=3)
    state = torch.get_rng_state()
    first = evaluate(model, tokenizer, TASK, settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert evaluate(model, tokenizer, TASK, settings) == first
    assert evaluate(model, tokenizer, TASK, settings.model_copy(update={"seed": 1})) != first


def test_summary_counts_what_the_problems_say(toy: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = toy
    evaluation = evaluate(model, tokenizer, TASK, EvalConfig(problems=15, samples=4))
    summary = evaluation.summary()
    rights = [sum(problem.correct) for problem in evaluation.problems]
    assert 0 < sum(rights) < 60
    assert summary["pass@1"] == pytest.approx(sum(rights) / 60)
    assert summary["pass@4"] == pytest.approx(sum(right > 0 for right in rights) / 15)
    assert summary["greedy"] == sum(problem.greedy_correct for problem in evaluation.problems) / 15
    assert (summary["n"], summary["samples"]) == (15, 4)
    assert summary["interval"][0] < summary["pass@1"] < summary["interval"][1]

    evaluation.save(tmp_path / "problems.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [problem.correct for problem in evaluation.problems]
    assert lines[3]["prompt"] == TASK.problems("test")[3]["prompt"]


def test_problems_are_the_first_of_the_split_or_all(toy: tuple[Any, Any]) -> None:
    model, tokenizer = toy
    few = evaluate(model, tokenizer, TASK, EvalConfig(problems=4, samples=1))
    every = evaluate(model, tokenizer, TASK, EvalConfig(problems=None, samples=1))
    assert len(every.problems) == len(TASK.problems("test")) == 40
    assert [problem.prompt for problem in few.problems] == TASK.problems("test")["prompt"][:4]


def test_completions_stop_at_every_token_that_the_model_declares(toy: tuple[Any, Any]) -> None:
    model, tokenizer = toy
    declared = model.generation_config.eos_token_id
    b = tokenizer.convert_tokens_to_ids("b")
    try:
        model.generation_config.eos_token_id = [declared, b]
        assert stop_tokens(model, tokenizer) == [declared, b]
        torch.manual_seed(0)
        assert not any("b" in text for text in complete(model, tokenizer, ["1="] * 200, 8, temperature=1.0))
    finally:
        model.generation_config.eos_token_id = declared
