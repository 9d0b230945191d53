"""What test_hooked_ddp.py judges: the cases of ddp_worker.py on the path of accelerators, with a language model."""

from __future__ import annotations

import copy

import ddp_worker
import torch
from ddp_worker import OPTIMIZERS, accumulation, bytes_reduced, ends_as_one_process, through_an_accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toy_models import build
from two_ranks import Figures, batches, differs, loss_of, own_half, serve, toy

import multiticket as mt
from multiticket.sparse import choose_path

VOCABULARY = toy().embed.num_embeddings


class Language(nn.Module):
    """A Qwen2 that gives logits, as the other workers' toy does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build("qwen2")

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(input_ids=tokens, use_cache=False).logits[..., :VOCABULARY]


_language = Language()


def language() -> nn.Module:
    return copy.deepcopy(_language)


def checkpointed(reentrant: bool) -> Figures:
    """DDP as transformers' Trainer sets it: it looks for unused parameters unless activations are checkpointed."""
    one, two = language(), language()
    for model in (one, two):
        model.inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    mask = mt.Mask.random(one, 0.3)
    first, second = mt.attach(one, mask), mt.attach(two, mask)
    (ids,) = batches(1)
    loss_of(one(ids), ids).backward()
    ddp = DistributedDataParallel(two)  # held: without it nothing is reduced
    loss_of(ddp(own_half(ids)), own_half(ids)).backward()
    return compared(first, second)


def unused_looked_for() -> Figures:
    one, two = language(), language()
    mask = mt.Mask.random(one, 0.3)
    first, second = mt.attach(one, mask), mt.attach(two, mask)
    (ids,) = batches(1)
    loss_of(one(ids), ids).backward()
    ddp = DistributedDataParallel(two, find_unused_parameters=True)
    loss_of(ddp(own_half(ids)), own_half(ids)).backward()
    return compared(first, second)


def compared(first: mt.Attachment, second: mt.Attachment) -> Figures:
    gradients = [{n: v.grad for n, v in a.named_parameters()} for a in (first, second)]
    return {
        "path": first.path,
        "gradients": differs(*gradients),
        "largest": max(float(g.abs().max()) for g in gradients[0].values()),
    }


if __name__ == "__main__":
    ddp_worker.toy = language
    choose_path._hooks_fit = lambda *_: True
    assert torch.distributed.is_available()
    serve(
        {
            "sgd": lambda: ends_as_one_process(OPTIMIZERS["sgd"]),
            "adamw": lambda: ends_as_one_process(OPTIMIZERS["adamw"]),
            "bytes": bytes_reduced,
            "accumulation": accumulation,
            "checkpointed": lambda: checkpointed(False),
            "checkpointed, reentrant": lambda: checkpointed(True),
            "unused looked for": unused_looked_for,
            "accelerator": through_an_accelerator,
        }
    )
