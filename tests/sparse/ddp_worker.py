"""What test_ddp.py judges: an attached model in DistributedDataParallel, beside one process on the joint batch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from two_ranks import Figures, batches, differs, loss_of, own_half, serve, toy, train

import multiticket as mt

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, eps=1e-5, fused=True),
}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not n.endswith("__values")}


def ends_as_one_process(make: Make) -> Figures:
    base = weights_of(toy())
    found: Figures = {}
    for masked in (True, False):
        one, two = toy(), toy()
        if masked:
            mask = mt.Mask.random(one, 0.3)
            attached = [mt.attach(one, mask), mt.attach(two, mask)]
            trained = [list(attachment.parameters()) for attachment in attached]
        else:
            trained = [list(one.parameters()), list(two.parameters())]
        train(one, make(trained[0]), clip=1.0)
        train(DistributedDataParallel(two), make(trained[1]), share=own_half, clip=1.0)
        found["values" if masked else "control"] = differs(weights_of(one), weights_of(two))
        found["moved" if masked else "control moved"] = differs(weights_of(two), base)
    return found


def bytes_reduced() -> Figures:
    model = toy()
    buffers = [name for name, _ in model.named_buffers()]
    attachment = mt.attach(model, mt.Mask.random(model, 0.3))
    assert [name for name, _ in model.named_buffers()] == buffers
    ddp = DistributedDataParallel(model)
    sizes: list[int] = []

    def count(_, bucket):
        sizes[-1] += bucket.buffer().nbytes
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0] / 2)

    ddp.register_comm_hook(None, count)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    for ids in batches(3):
        sizes.append(0)
        optimizer.zero_grad()
        ids = own_half(ids)
        loss_of(ddp(ids), ids).backward()
        optimizer.step()
    frozen = [name for name, p in model.named_parameters() if p.grad is not None and not p.requires_grad]
    return {"reduced": sizes, "nnz": attachment.nnz, "frozen with gradient": frozen}


def accumulation() -> Figures:
    """Two batches a step, the first without a reduction."""
    one, two = toy(), toy()
    mask = mt.Mask.random(one, 0.3)
    first, second = mt.attach(one, mask), mt.attach(two, mask)
    ddp = DistributedDataParallel(two)
    ids, more = batches(2)
    for batch in (ids, more):
        loss_of(one(batch), batch).backward()
    with ddp.no_sync():
        loss_of(ddp(own_half(ids)), own_half(ids)).backward()
    loss_of(ddp(own_half(more)), own_half(more)).backward()
    gradients = [{n: v.grad for n, v in a.named_parameters()} for a in (first, second)]
    return {
        "gradients": differs(*gradients),
        "largest": max(float(g.abs().max()) for g in gradients[0].values()),
    }


def through_an_accelerator() -> Figures:
    """accelerate.Accelerator's own loop, two batches a step, saved and loaded half-way, beside one process."""
    import accelerate

    os.environ.update(RANK=str(dist.get_rank()), LOCAL_RANK=str(dist.get_rank()), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # the processes have met already
    one = toy()
    mask = mt.Mask.random(one, 0.3)
    alone = mt.attach(one, mask)
    make = OPTIMIZERS["adamw"]
    optimizer = make(alone.parameters())
    for number, ids in enumerate(batches(8)):
        (loss_of(one(ids), ids) / 2).backward()
        if number % 2:
            nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()

    def start() -> tuple[Any, mt.Attachment, Any, Any]:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = toy()
        attachment = mt.attach(model, mask)
        return accelerator, attachment, *accelerator.prepare(model, make(attachment.parameters()))

    def go(
        accelerator: Any, attachment: mt.Attachment, model: Any, optimizer: Any, first: int, last: int
    ) -> None:
        for ids in list(batches(last))[first:]:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model(own_half(ids)), own_half(ids)))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(attachment.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()

    parts = start()
    go(*parts, 0, 4)
    parts[0].save_state(Path(sys.argv[1]) / "accelerator")
    parts[0].wait_for_everyone()
    go(*parts, 4, 8)
    again = start()
    again[0].load_state(Path(sys.argv[1]) / "accelerator")
    go(*again, 4, 8)
    trained = weights_of(parts[0].unwrap_model(parts[2]))
    return {
        "kind": type(parts[2]).__name__,
        "difference": differs(trained, weights_of(one)),
        "moved": differs(trained, weights_of(toy())),
        "resumed": differs(trained, weights_of(again[0].unwrap_model(again[2]))),
    }


def wrapped_first_is_refused() -> Figures:
    model = toy()
    try:
        mt.attach(DistributedDataParallel(model), mt.Mask.random(model, 0.3))
    except ValueError as error:
        return {"message": str(error), "still trains": all(p.requires_grad for p in model.parameters())}
    return {"message": ""}


def fsdp1_is_refused() -> Figures:
    model = toy()
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    return {"message": message_of(lambda: mt.attach(wrapped, mt.Mask.random(toy(), 0.3)))}


def fsdp1_afterwards() -> Figures:
    """Not ours to refuse: FSDP1 itself does not take frozen weights beside trained values into one flat tensor."""
    model = toy()
    mt.attach(model, mt.Mask.random(model, 0.3))
    return {"message": message_of(lambda: FullyShardedDataParallel(model, device_id=torch.device("cpu")))}


def tensor_parallelism_is_refused() -> Figures:
    model = toy()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    plan = {"blocks.0.up": ColwiseParallel(), "blocks.0.down": RowwiseParallel()}
    model = parallelize_module(model, mesh, plan)
    return {"message": message_of(lambda: mt.attach(model, mt.Mask.random(toy(), 0.3)))}


def message_of(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was raised"


if __name__ == "__main__":
    serve(
        {
            "sgd": lambda: ends_as_one_process(OPTIMIZERS["sgd"]),
            "adamw": lambda: ends_as_one_process(OPTIMIZERS["adamw"]),
            "bytes": bytes_reduced,
            "accumulation": accumulation,
            "accelerator": through_an_accelerator,
            "wrapped first": wrapped_first_is_refused,
            "fsdp1": fsdp1_is_refused,
            "fsdp1 afterwards": fsdp1_afterwards,
            "tensor parallel": tensor_parallelism_is_refused,
        }
    )
