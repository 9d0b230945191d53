"""Attention to prompts that lie in memory once, against torch's attention to whole rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_decoder import DECODERS, SMALL, small_decoder
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DeepseekV3Config,
    DynamicCache,
    Gemma3TextConfig,
)

from multiticket.generate import attention_parts, by_generate, own_attention, shared_cache
from multiticket.generate.own_attention import attends_by_parts
from multiticket.generate.shared_cache import SharedCache, SharedLayer
from multiticket.generate.shared_prompts import decode, likeliest, shares_prompts

LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "first_k_dense_replace": 2,
}  # fmt: skip
CONTEXTS = [[1, 2, 3, *ask] for _ in range(5) for ask in ([4, 5, 6], [9], [7, 8, 9, 10, 11])] + [[1, 2, 3, 3]]


@pytest.mark.parametrize("name", DECODERS)
def test_architectures_attend_by_parts_and_say_what_they_say(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_decoder(DECODERS[name])
    assert shares_prompts(model)
    assert attends_by_parts(model)
    before = model.config._attn_implementation
    asked, plain = [], SharedLayer.attend

    def noted(layer: Any, query: Tensor, *found: Any) -> Tensor:
        asked.append(len(query))
        return plain(layer, query, *found)

    monkeypatch.setattr(SharedLayer, "attend", noted)
    room = [3 + row % 20 for row in range(len(CONTEXTS))]
    for stops in ([22], list(range(0, 23, 3))):
        expected = by_generate.generate(model, CONTEXTS, room, stops, 0, likeliest)
        assert decode(model, CONTEXTS, room, stops, 0, likeliest) == expected
    assert asked
    assert min(asked) < len(CONTEXTS) / 2  # prompts were let go, too
    assert attends_by_parts(model)
    assert model.config._attn_implementation == before


def capped(*args: Any, **kwargs: Any) -> Any:
    return own_attention._attention(*args, **kwargs, softcap=30.0)


def masked(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    return own_attention._attention(module, query, key, value, torch.zeros(1, 1, 1, 1), **kwargs)


def changed(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    return own_attention._attention(module, query, key * 1.0, value, mask, **kwargs)


@pytest.mark.parametrize("other", [capped, masked, changed])
def test_a_model_that_attends_in_another_way_is_given_whole_rows(
    other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_decoder(DECODERS["llama"])
    before = model.config._attn_implementation
    room = [9] * len(CONTEXTS)
    expected = by_generate.generate(model, CONTEXTS, room, [22], 0, likeliest)
    monkeypatch.setitem(own_attention.AttentionInterface._global_mapping, own_attention.NAME, other)
    assert decode(model, CONTEXTS, room, [22], 0, likeliest) == expected
    assert not attends_by_parts(model)
    assert model.config._attn_implementation == before
    assert decode(model, CONTEXTS, room, [22], 0, likeliest) == expected


def test_a_model_that_caches_something_else_is_given_whole_rows() -> None:
    model, room = (
        small_decoder(DeepseekV3Config(**SMALL | LATENT | {"num_key_value_heads": 4})),
        [9] * len(CONTEXTS),
    )
    expected = by_generate.generate(model, CONTEXTS, room, [22], 0, likeliest)
    assert decode(model, CONTEXTS, room, [22], 0, likeliest) == expected
    assert not attends_by_parts(model)


def test_windows_and_caps_are_left_to_others() -> None:
    assert not shares_prompts(small_decoder(Gemma3TextConfig(**SMALL, head_dim=8)))


def filled(shape: tuple[int, ...], generator: torch.Generator) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(2):
        cache.update(
            *(torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)), layer
        )
    return cache


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.integers(0, 5),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([16, 64, 1 << 22]),
    st.integers(0, 2**31),
)
def test_parts_make_the_whole(
    which: list[int], common: int, width: int, said: int, group: int, together: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    prompts, heads, size = 4, 2, 3
    before = filled((prompts, heads, common + width, size), generator)
    for layer in before.layers:
        for one in (layer.keys, layer.values):
            one[:, :, :common] = one[:1, :, :common]
    whole = [(layer.keys, layer.values) for layer in before.layers]
    attention = torch.ones(prompts, common + width, dtype=torch.long)
    for prompt in range(prompts):
        attention[prompt, common : common + seed % (prompt + 1) % width] = 0
    rows = torch.tensor(which)
    cache = SharedCache(before, common, attention, rows)
    whole = [(keys[rows], values[rows]) for keys, values in whole]
    seen = attention[rows]
    limit, attention_parts.TOGETHER = attention_parts.TOGETHER, together
    try:
        for step in range(said):
            new = [
                torch.randn(2, len(rows), heads, 1, size, generator=generator, dtype=torch.float64)
                for _ in range(2)
            ]
            query = torch.randn(len(rows), heads * group, 1, size, generator=generator, dtype=torch.float64)
            seen = F.pad(seen, (0, 1), value=1)
            for layer, (keys, values) in enumerate(new):
                cache.update(keys, values, layer)
                whole[layer] = tuple(
                    torch.cat([old, one], dim=2)
                    for old, one in zip(whole[layer], (keys, values), strict=True)
                )
                assert cache.get_seq_length(layer) == whole[layer][0].shape[2]
                expected = F.scaled_dot_product_attention(
                    query, *whole[layer], attn_mask=seen[:, None, None].bool(), scale=0.7, enable_gqa=True
                )
                shared = cache.shared[layer]
                torch.testing.assert_close(shared.attend(query, *shared.tail, 0.7), expected)
            if step % 7 == 3 and len(rows) > 1:
                keep = torch.randperm(len(rows), generator=generator)[: len(rows) // 2 + 1].sort().values
                cache.batch_select_indices(keep)
                rows, seen = rows[keep], seen[keep]
                whole = [(keys[keep], values[keep]) for keys, values in whole]
    finally:
        attention_parts.TOGETHER = limit


def test_keys_are_held_once_a_prompt() -> None:
    model, rows = small_decoder(DECODERS["llama"]), 64
    cache = DynamicCache(config=model.config)
    model(torch.arange(20).repeat(2, 1), past_key_values=cache, use_cache=True)
    shared = SharedCache(cache, 12, torch.ones(2, 20), torch.arange(rows) % 2)
    with own_attention.own_attention(model):
        model(
            torch.ones(rows, 1, dtype=torch.long),
            position_ids=torch.full((rows, 1), 20),
            past_key_values=shared,
        )
    for layer in shared.shared:
        held = [*layer.common, *layer.own, *layer._room]
        assert sum(one.numel() for one in held) == 2 * 2 * 8 * (12 + 2 * 8 + rows * shared_cache.LEAST_ROOM)
    assert all(layer.keys is None for layer in cache.layers)
