"""What generation and scoring hold beside the model, whatever its vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import multiticket as mt
from multiticket.generate.completion import complete
from multiticket.generate.head import contiguous_head
from multiticket.generate.shared_prompts import inverse_transform
from multiticket.models import load_model


class Largest(TorchDispatchMode):
    """Remembers the largest number of entries that a tensor had, views included."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.entries = max(self.entries, made.numel())
        return made


def frozen(toy_model_folder: Path) -> tuple[Any, Any]:
    model, tokenizer = load_model(str(toy_model_folder), "bfloat16")
    return model.requires_grad_(False), tokenizer


def attached(toy_model_folder: Path) -> tuple[Any, Any]:
    model, tokenizer = load_model(str(toy_model_folder), "bfloat16")
    mt.attach(model, mt.Mask.random(model, 0.1))
    return model, tokenizer


@pytest.mark.parametrize("kind", [frozen, attached])
def test_generation_holds_the_head_once_and_not_for_every_row(kind: Any, toy_model_folder: Path) -> None:
    """32 rows and the head of a 0.5B Qwen2 in bf16 were 8.7 GB."""
    model, tokenizer = kind(toy_model_folder)
    rows = 64
    with Largest() as largest:
        complete(model, tokenizer, [f"{10 + row}=" for row in range(rows)], 2)
    head = model.get_output_embeddings().weight
    assert largest.entries < rows * head.numel()


@torch.no_grad()
def test_an_attached_layer_multiplies_a_slice_once(toy_model_folder: Path) -> None:
    """As others generate with it, without our `complete`."""
    model, _ = attached(toy_model_folder)
    head = model.get_output_embeddings()
    hidden = torch.randn(64, 3, head.weight.shape[1], dtype=torch.bfloat16)[:, -1:, :]
    with Largest() as largest:
        logits = head(hidden)
    assert largest.entries < 8 * head.weight.numel()
    assert torch.equal(logits, head(hidden.contiguous()))


def test_the_head_is_as_it_was_afterwards(toy_model_folder: Path) -> None:
    model, _ = frozen(toy_model_folder)
    head = model.get_output_embeddings()
    with contiguous_head(model):
        assert head._forward_pre_hooks
    assert not head._forward_pre_hooks


def test_tokens_are_drawn_the_same_in_any_number_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 50)
    uniform = torch.from_numpy(np.random.default_rng(0).random(7))
    whole = inverse_transform(logits, uniform)
    cumulative = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    assert torch.equal(whole, (cumulative < uniform[:, None] * cumulative[:, -1:]).sum(-1))
    monkeypatch.setattr("multiticket.generate.shared_prompts.TOGETHER", 120)
    assert torch.equal(inverse_transform(logits, uniform), whole)
