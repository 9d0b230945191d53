from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_task import TASK

from multiticket.config import EvalConfig
from multiticket.evaluate.evaluation import evaluate
from multiticket.generate import completion
from multiticket.generate.completion import complete, stop_tokens
from multiticket.models import load_model


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
        assert not any("b" in text for text in complete(model, tokenizer, ["1="] * 200, 8, temperature=1.0))
    finally:
        model.generation_config.eos_token_id = declared


@pytest.fixture
def long_winded(toy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The toy with early breaking-off, so that a test of few tokens sees many rounds."""
    monkeypatch.setattr(completion, "LEAST_TOKENS", 2)
    monkeypatch.setattr(completion, "LEAST_ROWS", 4)
    return toy


@pytest.mark.parametrize("temperature", [None, 1.0, 3.0])
def test_breaking_off_and_batching_change_no_completion_by_generate(
    temperature: float | None, long_winded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = long_winded
    monkeypatch.setattr(completion, "shares_prompts", lambda model: False)
    prompts = [f"{n}=" for n in range(0, 120, 3)]
    rounds: list[int] = []
    advance = completion._advance

    def counting(model: Any, batch: Any, *rest: Any) -> Any:
        rounds.append(len(batch))
        return advance(model, batch, *rest)

    monkeypatch.setattr(completion, "_advance", counting)
    alone = [
        complete(model, tokenizer, [prompt], 40, temperature, seed=5, streams=[i])[0]
        for i, prompt in enumerate(prompts)
    ]
    rounds.clear()
    assert complete(model, tokenizer, prompts, 40, temperature, seed=5) == alone
    if temperature is not None:
        assert len({len(text) for text in alone}) > 3
        assert len(rounds) > 1, "it was to be broken off"
        assert rounds[1] <= 10, "and to go on with a quarter"
    assert complete(model, tokenizer, prompts, 40, temperature, batch_size=7, seed=5) == alone
    rounds.clear()
    assert complete(model, tokenizer, prompts, 40, temperature, batch_tokens=200, seed=5) == alone
    assert max(rounds) == 4  # of at most 4 + 40 tokens


def test_a_completion_takes_more_than_a_batch_only_alone(toy: tuple[Any, Any]) -> None:
    rows = [completion._Row(i, i, None, [2] * length, 10) for i, length in enumerate([3, 5, 50, 4, 60])]
    batches = list(completion._batches(rows, batch_size=512, batch_tokens=45, apart=True))
    assert [[row.index for row in batch] for batch in batches] == [[0, 3, 1], [2], [4]]


def test_more_samples_leave_the_first_ones_as_they_were(toy: tuple[Any, Any]) -> None:
    model, tokenizer = toy
    few = evaluate(model, tokenizer, TASK, EvalConfig(problems=10, samples=2))
    more = evaluate(model, tokenizer, TASK, EvalConfig(problems=12, samples=5, batch_size=3))
    for one, other in zip(few.problems, more.problems, strict=False):
        assert one.correct == other.correct[:2]
        assert one.greedy_completion == other.greedy_completion


def test_what_a_model_declares_for_chatting_does_not_change_the_measurement(toy: tuple[Any, Any]) -> None:
    """Instruct models declare penalties, top-p and top-k, which transformers puts wherever nothing is said."""
    model, tokenizer = toy
    settings = EvalConfig(problems=20, samples=3)
    plain = evaluate(model, tokenizer, TASK, settings)
    declared = {"repetition_penalty": 5.0, "top_k": 1, "top_p": 0.1, "temperature": 0.1, "do_sample": True}
    declared |= {"no_repeat_ngram_size": 1, "num_beams": 2}
    kept = {name: getattr(model.generation_config, name) for name in declared}
    try:
        model.generation_config.update(**declared)
        assert evaluate(model, tokenizer, TASK, settings) == plain
    finally:
        model.generation_config.update(**kept)


def test_padding_that_comes_after_a_batch_was_broken_off_is_no_part_of_a_completion(
    long_winded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator transformers notices a stop a step late, and pads every row until then."""
    model, tokenizer = long_winded
    monkeypatch.setattr(completion, "shares_prompts", lambda model: False)
    prompts = [f"{n}=" for n in range(0, 120, 3)]
    expected = complete(model, tokenizer, prompts, 40, 1.0)
    generate = model.generate

    def late(**given: Any) -> torch.Tensor:
        said = generate(**given)
        return torch.cat([said, torch.full_like(said[:, :1], tokenizer.pad_token_id)], dim=1)

    monkeypatch.setattr(model, "generate", late)
    assert complete(model, tokenizer, prompts, 40, 1.0) == expected


def test_an_evaluation_tells_how_far_it_is(toy: tuple[Any, Any]) -> None:
    model, tokenizer = toy
    told: list[tuple[int, int, float]] = []
    settings = EvalConfig(problems=6, samples=3, batch_size=4)
    quiet = evaluate(model, tokenizer, TASK, settings)
    spoken = evaluate(model, tokenizer, TASK, settings, tell=lambda *how_far: told.append(how_far))
    assert spoken == quiet
    assert [worth for *_, worth in told] == sorted(worth for *_, worth in told)
    assert all(done <= worth <= in_all == 24 for done, in_all, worth in told)
    assert told[-1] == (24, 24, 24)
    assert len(told) >= 6
