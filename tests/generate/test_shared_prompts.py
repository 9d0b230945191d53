"""Decoding that computes prompts once, against `generate` of transformers and against no cache at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_decoder import SMALL
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from multiticket.generate import by_generate, completion, shared_prompts
from multiticket.generate.completion import complete
from multiticket.generate.shared_prompts import (
    common_beginning,
    decode,
    drawn,
    inverse_transform,
    likeliest,
    shares_prompts,
)
from multiticket.models import load_model

CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gpt2": GPT2Config(vocab_size=23, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}


def _model(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # or one token would be much like another
    model.generation_config.eos_token_id = None
    return model


def _contexts(beginning: list[int]) -> list[list[int]]:
    """Of three lengths, in groups whose members do not stand together."""
    asked = [[3, 4, 5, 6], [3, 9], [7, 8, 9, 10, 11, 12, 13]]
    return [beginning + ask for _ in range(5) for ask in asked] + [[*beginning, 3]]


@pytest.mark.parametrize("beginning", [[], [1, 2, 14, 15, 16]], ids=["apart", "one beginning"])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_generate(name: str, beginning: list[int]) -> None:
    model, contexts = _model(name), _contexts(beginning)
    assert shares_prompts(model)
    room = [3 + row % 9 for row in range(len(contexts))]
    lengths = set()
    for stops in ([22], list(range(0, 23, 3))):
        expected = by_generate.generate(model, contexts, room, stops, 0, likeliest)
        assert decode(model, contexts, room, stops, 0, likeliest) == expected
        lengths |= {len(ids) for ids in expected[0]}
    assert len(lengths) > 4


@pytest.mark.parametrize("name", CONFIGS)
def test_drawn_tokens_are_those_that_generate_draws_by_the_same_numbers(name: str) -> None:
    model, contexts = _model(name), _contexts([1, 2])
    uniforms = torch.rand(len(contexts), 12, dtype=torch.float64)
    asked = (contexts, [12] * len(contexts), [5, 6, 7], 0, drawn(uniforms, 1.5))
    expected, over = by_generate.generate(model, *asked)
    assert decode(model, *asked) == (expected, over)
    assert all(over)
    assert len({tuple(ids) for ids in expected}) > 8
    assert all(ids[-1] in (5, 6, 7) or len(ids) == 12 for ids in expected)


def test_the_common_beginning_is_one_less_than_the_shortest_at_most() -> None:
    assert common_beginning([(1, 2, 3, 4, 5), (1, 2, 3), (1, 2, 9, 4)]) == 2
    assert common_beginning([(1, 2, 3, 4, 5), (1, 2, 3)]) == 2
    assert common_beginning([(1, 2, 3, 4, 5), (2, 2, 3)]) == 0


def test_each_prompt_and_their_common_beginning_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, contexts = _model("llama"), _contexts([1, 2, 14, 15, 16])
    shapes = []
    forward = shared_prompts._forward

    def counting(model: Any, ids: Any, *rest: Any) -> Any:
        shapes.append(tuple(ids.shape))
        return forward(model, ids, *rest)

    monkeypatch.setattr(shared_prompts, "_forward", counting)
    said, _ = decode(model, contexts, [12] * len(contexts), list(range(0, 23, 3)), 0, likeliest)
    assert shapes[:2] == [(1, 5), (4, 7)]
    running = [rows for rows, _ in shapes[2:]]
    assert running == sorted(running, reverse=True)
    assert running[-1] < len(contexts)
    longest = max(map(len, said))
    assert len(running) == longest - 1
    for step, rows in enumerate(running, 1):
        wanted = sum(len(ids) > step for ids in said)
        assert wanted <= rows < wanted + len(contexts) / 8 + 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1300), st.floats(0, 1, exclude_max=True), st.integers(0, 2**31), st.floats(0.1, 20))
def test_inverse_transform_is_that_over_the_whole_vocabulary(
    size: int, uniform: float, seed: int, spread: float
) -> None:
    logits = spread * torch.randn(1, size, generator=torch.Generator().manual_seed(seed))
    logits[0, seed % size :: 3] = -torch.inf
    logits[0, seed % size] = 1.0
    probabilities = logits.softmax(-1)
    running = probabilities.double().cumsum(-1)
    target = torch.tensor([[uniform]], dtype=torch.float64) * running[:, -1:]
    found = inverse_transform(logits, torch.tensor([uniform], dtype=torch.float64))
    assert probabilities[0, found] > 0
    before = running[0, found - 1] if found else 0.0
    assert before - 1e-6 <= target.squeeze() <= running[0, found] + 1e-6  # a block is summed in fp32


def test_sampled_tokens_follow_the_models_distribution() -> None:
    model, draws = _model("qwen2"), 6000
    contexts = [[1, 2, 3 + row % 2] for row in range(draws)]
    uniforms = torch.rand(draws, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    said, _ = decode(model, contexts, [1] * draws, [22], 0, drawn(uniforms, 2.0))
    for row in (0, 1):
        with torch.no_grad():
            expected = (model(torch.tensor([contexts[row]])).logits[0, -1] / 2.0).softmax(-1)
        counts = torch.bincount(torch.tensor(said[row::2]).flatten(), minlength=23)
        spread = (expected * (1 - expected) / (draws / 2)).sqrt()
        assert ((counts / (draws / 2) - expected).abs() < 4.5 * spread + 1e-9).all()


def test_rows_are_left_where_they_are_enough() -> None:
    model, contexts = _model("llama"), _contexts([1])
    whole, _ = decode(model, contexts, [20] * len(contexts), [5, 6], 0, likeliest)
    told: list[tuple[int, int]] = []
    some, over = decode(
        model, contexts, [20] * len(contexts), [5, 6], 0, likeliest, lambda *how_far: told.append(how_far),
        lambda running, tokens: tokens == 4,
    )  # fmt: skip
    assert some == [ids[:4] for ids in whole]
    assert over == [len(ids) <= 4 for ids in whole]
    assert [tokens for _, tokens in told] == [1, 2, 3, 4]
    assert told[-1][0] == sum(over)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=4),  # a window of tokens, among which padding would count
        BloomConfig(vocab_size=23, hidden_size=32, n_layer=2, n_head=4),  # takes no positions
    ],
    ids=["window", "no positions"],
)
def test_other_models_are_left_to_generate(config: Any) -> None:
    assert not shares_prompts(AutoModelForCausalLM.from_config(config))


def test_both_ways_complete_texts_alike(toy_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(str(toy_model_folder))
    prompts = [f"{n}=" for n in range(90, 110) for _ in range(3)]
    temperatures = [None, 1.0, 3.0] * 20
    shared = complete(model, tokenizer, prompts, 40, temperatures, batch_size=32, seed=5)
    monkeypatch.setattr(completion, "shares_prompts", lambda model: False)
    assert complete(model, tokenizer, prompts, 40, temperatures, batch_size=32, seed=5) == shared
    alone = [complete(model, tokenizer, [prompt], 40)[0] for prompt in prompts[::3]]
    assert shared[::3] == alone
