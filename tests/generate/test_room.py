"""How much is generated at once: as much as keys and values have room for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_decoder import SMALL
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, LlamaConfig, MambaConfig, Qwen3Config

from multiticket.generate import completion, room
from multiticket.generate.completion import complete_ids
from multiticket.generate.own_attention import attends_by_parts
from multiticket.generate.room import bytes_a_token, most_tokens
from multiticket.models import load_model


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        Qwen3Config(**SMALL, head_dim=16),
        GPT2Config(vocab_size=23, n_embd=32, n_layer=2, n_head=4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_takes_what_the_cache_grows_by(config: Any, dtype: torch.dtype) -> None:
    model, cache = AutoModelForCausalLM.from_config(config, dtype=dtype), DynamicCache()
    model(torch.arange(7)[None], past_key_values=cache, use_cache=True)
    grown = sum(one.numel() * one.itemsize for layer in cache.layers for one in (layer.keys, layer.values))
    assert 7 * bytes_a_token(config, dtype) == grown


def test_no_more_than_their_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(**SMALL)
    each = bytes_a_token(config, torch.float32)
    assert each is not None
    monkeypatch.setattr(room, "machine_memory", lambda: room.SHARE * each * 1000)
    assert most_tokens(config, torch.float32, 2**17) == 1000
    assert most_tokens(config, torch.bfloat16, 2**17) == 2000
    assert most_tokens(config, torch.float32, 10) == 10
    monkeypatch.setattr(room, "machine_memory", lambda: 1)
    assert most_tokens(config, torch.float32, 10) == 1
    monkeypatch.setattr(room, "machine_memory", lambda: None)
    assert most_tokens(config, torch.float32, 10) == 10
    assert most_tokens(MambaConfig(), torch.float32, 10) == 10  # has no keys and values of tokens


def test_prompts_that_are_shared_count_once(toy_model_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(str(toy_model_folder))
    assert attends_by_parts(model)
    contexts = [[2, 3, 4, 5, 6, 7, 8, 9 + problem] for problem in range(6) for _ in range(5)]
    sizes: list[int] = []
    advance = completion._advance

    def noted(model: Any, batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch))
        return advance(model, batch, *rest)

    monkeypatch.setattr(completion, "_advance", noted)
    whole = complete_ids(model, tokenizer, contexts, 4)
    assert sizes == [30]
    sizes.clear()
    assert complete_ids(model, tokenizer, contexts, 4, batch_tokens=2 * (8 + 5 * 4)) == whole
    assert sizes[:3] == [10, 10, 10]
    sizes.clear()
    monkeypatch.setattr(completion, "attends_by_parts", lambda model: False)
    assert complete_ids(model, tokenizer, contexts, 4, batch_tokens=2 * (8 + 5 * 4)) == whole
    assert sizes[:8] == [4, 4, 4, 4, 4, 4, 4, 2]
    sizes.clear()
    assert complete_ids(model, tokenizer, contexts, 4, batch_tokens=1) == whole  # one takes what it takes
    assert set(sizes) == {1}
