"""A ticket in verl's own FSDP2 actor: on one rank and two, over tied and untied bases, sent, kept and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from problem import ANSWER, LEARNING_RATE, SENTENCES
from safetensors.torch import load_file
from torch import Tensor

import multiticket as mt

BASES = Path(mt.__file__).parent / "bases"
ASKED = {"density": 0.01, "seed": 3}
STEPS = 3


@cache
def base_weights(base: str) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(BASES / base / "model.safetensors").items()}


def weights(path: Path) -> dict[str, Tensor]:
    return load_file(f"{path}.safetensors")


@pytest.fixture(scope="session", params=["tiny-qwen2", "tiny-llama"])
def base(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def trained(act: Callable[..., Path], out: Path, base: str) -> dict[int, Path]:
    """Of one rank and of two, the same steps."""
    return {
        ranks: act(
            f"{base}-{ranks}",
            base,
            ranks,
            steps=STEPS,
            multiticket=ASKED,
            save_to=str(out / f"{base}-{ranks}"),
        )
        for ranks in (1, 2)
    }


def plain_training(base: str) -> dict[str, Tensor]:
    """The weights after the same steps without verl."""
    from transformers import AutoTokenizer

    model, _ = mt.bases.load(base, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASES / base)
    attachment = mt.attach(model, mt.Mask.random(model, **ASKED))
    optimizer = torch.optim.SGD(attachment.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for sentence in SENTENCES:
            ids = torch.tensor([tokenizer(sentence).input_ids])
            log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            chosen = log_probs.gather(1, ids[0, 1:, None])[-ANSWER:]
            (-chosen.sum() / len(SENTENCES)).backward()
        optimizer.step()
    attachment.detach()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_the_mask_trains_and_nothing_else(trained: dict[int, Path], base: str) -> None:
    model, _ = mt.bases.load(base, torch.float32)
    mask = mt.Mask.random(model, **ASKED)
    facts = json.loads(Path(f"{trained[1]}.json").read_text())
    assert facts["attached"]
    assert facts["trained"] == mask.nnz
    before, after = base_weights(base), weights(trained[1])
    assert set(after) >= set(before)
    assert not any("ticket" in name for name in after)
    for name in mask.names:
        changed = (before[name] != after[name]).flatten().nonzero().flatten()
        assert torch.isin(changed, mask.indices(name)).all()
    assert any((before[name] != after[name]).any() for name in mask.names)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_checkpoints_ticket_is_what_verl_sends(
    trained: dict[int, Path], out: Path, base: str, ranks: int
) -> None:
    ticket = mt.Ticket.load(out / f"{base}-{ranks}" / "ticket.safetensors")
    assert ticket.provenance["trainer"] == "verl"
    assert ticket.provenance["steps"] == STEPS
    model, _ = mt.bases.load(base, torch.float32)
    ticket.merge(model)
    sent = weights(trained[ranks])
    assert all(torch.equal(parameter, sent[name]) for name, parameter in model.named_parameters())


def test_two_ranks_equal_one_and_both_equal_plain_training(trained: dict[int, Path], base: str) -> None:
    one, two = weights(trained[1]), weights(trained[2])
    assert {*one} == {*two}
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    for name, weight in plain_training(base).items():
        torch.testing.assert_close(one[name], weight, rtol=0, atol=1e-6)
    facts = [json.loads(Path(f"{trained[ranks]}.json").read_text()) for ranks in (1, 2)]
    assert facts[0]["fingerprint"] == facts[1]["fingerprint"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_delta_is_k_values_and_gives_the_weights(trained: dict[int, Path], base: str, ranks: int) -> None:
    entries = load_file(f"{trained[ranks]}-entries.safetensors")
    sent, rebuilt = weights(trained[ranks]), base_weights(base)
    count = 0
    for key, positions in entries.items():
        kind, name = key.split(":")
        if kind == "positions":
            values = entries[f"values:{name}"]
            count += values.numel()
            dense = rebuilt[name].bfloat16().flatten()
            dense[positions.long()] = values
            assert torch.equal(dense.view_as(rebuilt[name]), sent[name].bfloat16())
    assert count == json.loads(Path(f"{trained[ranks]}.json").read_text())["trained"]


def test_a_resumed_actor_ends_at_the_same_bits(act: Callable[..., Path], out: Path) -> None:
    base, asked = "tiny-qwen2", {"multiticket": ASKED, "optimizer": "AdamW"}
    whole = act("whole", base, 2, steps=4, **asked)
    act("half", base, 2, steps=2, save_to=str(out / "half-way"), **asked)
    rest = act("rest", base, 2, steps=2, load=str(out / "half-way"), **asked)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(rest).items())


def test_without_settings_the_engine_is_verls_own(act: Callable[..., Path]) -> None:
    facts = json.loads(Path(f"{act('plain', 'tiny-qwen2', steps=1)}.json").read_text())
    assert not facts["attached"]
    assert facts["trained"] == sum(tensor.numel() for tensor in base_weights("tiny-qwen2").values())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"multiticket": {"densty": 0.1}}, "has no densty; it takes method, density"),
        ({"multiticket": {"density": 2}}, "ensity"),
        ({"strategy": "fsdp"}, "trains under FSDP2, not fsdp"),
        ({"lora_rank": 4}, "do not train together"),
        ({"save": ["model", "hf_model"]}, "names hf_model"),
    ],
)
def test_what_cannot_train_is_refused_in_a_sentence(
    act: Callable[..., Path], settings: dict, sentence: str
) -> None:
    result = act(
        f"refused-{next(iter(settings))}", "tiny-qwen2", steps=1, **{"multiticket": ASKED} | settings
    )
    assert sentence in Path(f"{result}.txt").read_text()
