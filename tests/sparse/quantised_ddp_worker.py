"""What test_quantised_ddp.py judges: a quantised model in DistributedDataParallel, beside one process on all rows."""

from __future__ import annotations

import torch
from quantised_models import loss_of, quantised
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import Figures, batches, own_half, serve

import multiticket as mt


def train(kind: str, model: nn.Module, wrapped: bool) -> mt.Attachment:
    attachment = mt.attach(model, mt.Mask.random(model, 0.1))
    runs: nn.Module = DistributedDataParallel(model) if wrapped else model
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.5)
    for ids in batches(3):
        loss_of(runs, own_half(ids) if wrapped else ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    return attachment


def ends_as_one_process(kind: str) -> Figures:
    one, two, base = (quantised(kind, torch.float32) for _ in range(3))
    alone, together = train(kind, one, wrapped=False), train(kind, two, wrapped=True)
    before = mt.attach(base, alone.mask).state_dict()["values"]
    mine, theirs = alone.state_dict()["values"], together.state_dict()["values"]
    return {
        "moved": max(float((mine[n] - before[n]).abs().max()) for n in mine),
        "difference": max(float((mine[n] - theirs[n]).abs().max()) for n in mine),
    }


if __name__ == "__main__":
    serve({kind: lambda kind=kind: ends_as_one_process(kind) for kind in ("nf4", "torchao-int8")})
