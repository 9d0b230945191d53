"""Training passes that look at prompts where they lie, against whole rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_decoder import DECODERS, small_decoder
from torch import Tensor

from multiticket.generate import own_attention
from multiticket.generate.own_attention import attends_by_parts
from multiticket.train import group_attention
from multiticket.train.shared_groups import after_prompts

PROMPTS = [[5, 6, 7, 1, 2], [5, 6, 7, 3], [9], [5, 6, 7, 4, 2, 2, 1]]
WHICH = torch.tensor([0, 3, 0, 1, 3, 3, 2, 3, 1, 3])
"""Groups of different sizes, in any order. One prompt is a single token, all of which the rollouts' passes have."""
SAID = 4


def rows() -> tuple[Tensor, Tensor]:
    """(rollouts, tokens) ids and attention mask; some rollouts end early."""
    width = max(map(len, PROMPTS))
    ids, attention = (
        torch.zeros(len(WHICH), width + SAID, dtype=torch.long),
        torch.zeros(len(WHICH), width + SAID, dtype=torch.long),
    )
    for row, prompt in enumerate(WHICH.tolist()):
        first, last = width - len(PROMPTS[prompt]), width + 1 + row % SAID
        ids[row, first:width] = torch.tensor(PROMPTS[prompt])
        ids[row, width:] = (torch.arange(SAID) * 5 + row * 3) % 22 + 1
        attention[row, first:last] = 1
    return ids, attention


def scored(model: Any, shared: bool, attention: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities (rollouts, tokens, vocabulary) of what was said, and the gradients of all weights."""
    ids, usual = rows()
    attention = usual if attention is None else attention
    before = ids.shape[1] - SAID - 1
    if shared:
        first = torch.stack([(prompt == WHICH).nonzero()[0, 0] for prompt in range(len(PROMPTS))])
        model_now = after_prompts(model, ids[:, :before], attention[:, :before], first, WHICH)
        logits = model_now(input_ids=ids[:, before:], attention_mask=attention[:, before:]).logits[:, :-1]
    else:
        logits = model(input_ids=ids, attention_mask=attention).logits[:, before:-1]
    model.zero_grad()
    found = logits.log_softmax(-1)
    weights = torch.linspace(-1, 1, found.shape[-1], dtype=found.dtype)
    (found * weights * attention[:, before + 1 :, None]).sum().backward()
    there = attention[:, before:-1].bool()
    return found.detach()[there], [one.grad.clone() for one in model.parameters() if one.grad is not None]


def assert_alike(ours: Any, theirs: Any, **close: float) -> None:
    torch.testing.assert_close(ours[0], theirs[0], **close)
    assert len(ours[1]) == len(theirs[1])
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, **close)


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of each layer's queries that were answered by parts."""
    seen: list[tuple[int, ...]] = []
    plain: Callable[..., Any] = group_attention._GroupLayer.attend

    def noted(layer: Any, query: Tensor, *given: Any) -> Any:
        found = plain(layer, query, *given)
        seen.append(tuple(query.shape[:3]))
        return found

    monkeypatch.setattr(group_attention._GroupLayer, "attend", noted)
    return seen


@pytest.mark.parametrize("name", DECODERS)
def test_architectures_learn_the_same(name: str, attended: list[Any]) -> None:
    model = small_decoder(DECODERS[name])
    before = model.config._attn_implementation
    ours = scored(model, shared=True)
    assert attended == [(len(WHICH), 4, SAID + 1)] * 2
    assert model.config._attn_implementation == before
    assert_alike(ours, scored(model, shared=False), rtol=1e-4, atol=1e-5)  # angles are in fp32


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bf16_it_is_as_exact_as_whole_rows(autocast: bool, attended: list[Any]) -> None:
    exact = scored(small_decoder(DECODERS["qwen3"]), shared=False)
    model = small_decoder(DECODERS["qwen3"]).to(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = scored(model, shared=True)
        assert attended
        theirs = scored(model, shared=False)

    def error(found: Any) -> float:
        pairs = [(found[0], exact[0]), *zip(found[1], exact[1], strict=True)]
        return sum(float((one.double() - other).norm() / other.norm()) for one, other in pairs)

    assert error(ours) < 1.2 * error(theirs)


def test_without_a_graph_it_scores_the_same(attended: list[Any]) -> None:
    model = small_decoder(DECODERS["llama"])
    with torch.no_grad():
        ids, attention = rows()
        first, before = torch.tensor([0, 3, 6, 1]), ids.shape[1] - SAID - 1
        continued = after_prompts(model, ids[:, :before], attention[:, :before], first, WHICH)
        logits = continued(input_ids=ids[:, before:], attention_mask=attention[:, before:]).logits
        expected = model(input_ids=ids, attention_mask=attention).logits[:, before:]
    assert attended
    there = attention[:, before:].bool()
    torch.testing.assert_close(logits[there], expected[there], rtol=1e-4, atol=1e-5)


def capped(*args: Any, **kwargs: Any) -> Any:
    return own_attention._attention(*args, **kwargs, softcap=30.0)


def dropping(*args: Any, **kwargs: Any) -> Any:
    return own_attention._attention(*args, **kwargs | {"dropout": 0.1})


def looking_ahead(*args: Any, **kwargs: Any) -> Any:
    return own_attention._attention(*args, **kwargs, is_causal=False)


def late(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The second layer is another."""
    return (capped if module.layer_idx else own_attention._attention)(module, *args, **kwargs)


@pytest.mark.parametrize("other", [capped, dropping, looking_ahead, late])
def test_a_model_that_attends_in_another_way_is_given_whole_rows(
    other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_decoder(DECODERS["llama"])
    monkeypatch.setitem(own_attention.AttentionInterface._global_mapping, own_attention.NAME, other)
    expected = scored(model, shared=False)
    for _ in range(2):
        assert_alike(scored(model, shared=True), expected, rtol=1e-4, atol=1e-5)
        assert not attends_by_parts(model)


def test_tokens_that_are_hidden_between_others_are_hidden(attended: list[Any]) -> None:
    model = small_decoder(DECODERS["llama"])
    _, attention = rows()
    attention[:, -SAID] = 0
    attention[:, -SAID + 1] = 1
    assert_alike(scored(model, True, attention), scored(model, False, attention), rtol=1e-4, atol=1e-5)
    assert not attended
    assert attends_by_parts(model)


def test_a_prompt_is_kept_once_for_all_rollouts_and_heads() -> None:
    model, prompt, said, rollouts = small_decoder(DECODERS["llama"]), 60, 2, 40
    ids = torch.arange(prompt + said).repeat(rollouts, 1) % 22 + 1
    attention, which = torch.ones_like(ids), torch.zeros(rollouts, dtype=torch.long)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        before = prompt - 1
        continued = after_prompts(model, ids[:, :before], attention[:, :before], which[:1], which)
        continued(input_ids=ids[:, before:], attention_mask=attention[:, before:])
    keys_of_whole_rows = 2 * 2 * rollouts * prompt * model.config.hidden_size * 8  # layers, keys and values
    assert sum(kept.values()) < 0.9 * keys_of_whole_rows
