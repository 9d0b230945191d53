"""Tickets of the shipped base with made-up values, and what the merged checkpoints say, by transformers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from multiticket import bases
from multiticket.mask import Mask, fingerprint
from multiticket.ticket import Ticket

BASE = "tiny-qwen2"
NEW_TOKENS = 8
SEEDS = {"one": 1, "two": 2, "three": 3}


def ticket(model: PreTrainedModel, mask: Mask, seed: int, size: float = 0.2) -> Ticket:
    """The base's values at the mask's positions, moved at random."""
    base = {name: model.get_parameter(name).detach().view(-1)[mask.indices(name)] for name in mask.names}
    generator = torch.Generator().manual_seed(seed)
    moved = {
        name: (value + size * torch.randn(value.shape, generator=generator)).to(value.dtype)
        for name, value in base.items()
    }
    return Ticket(mask, moved, fingerprint(mask, base.__getitem__))


def make_tickets(folder: Path) -> dict[str, Path]:
    model, _ = bases.load(BASE, torch.float32)
    for name, seed in SEEDS.items():
        ticket(model, Mask.random(model, 0.01, seed=seed), seed).save(folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in SEEDS}


def merged(path: Path | None) -> PreTrainedModel:
    """The base in fp32, with a ticket merged for good."""
    model, _ = bases.load(BASE, torch.float32)
    if path is not None:
        Ticket.load(path).merge(model)
    return model


def prompts(count: int) -> list[str]:
    return [f"{a}+{b}=" for a in range(10, 100, 3) for b in range(11, 99, 7)][:count]


def greedy(path: Path | None, texts: list[str]) -> dict[str, str]:
    """Greedy completions of the merged checkpoint, where each token leads by 0.01 at least.

    Where two tokens are nearly equal, another order of the same sums may choose the other one; such prompts are
    left out.
    """
    return _greedy(path, tuple(texts))


@cache
def _greedy(path: Path | None, texts: tuple[str, ...]) -> dict[str, str]:
    model, (_, tokenizer) = merged(path), bases.load(BASE, torch.float32)
    answers = {}
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        out = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        first, second = torch.stack(out.logits).squeeze(1).topk(2).values.unbind(1)
        if (first - second).min() > 0.01:
            tokens: Tensor = out.sequences[0, inputs["input_ids"].shape[1] :]
            answers[text] = tokenizer.decode(tokens, skip_special_tokens=True)
    return answers
