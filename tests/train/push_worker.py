"""What test_push_sharded.py judges: TRL's own push to a server, from a model that FSDP2 shards over two ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "sparse"))

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from trl.generation.vllm_generation import VLLMGeneration
from two_ranks import Figures, own_half, serve, toy, train

import multiticket as mt
from multiticket.train.engine_weights import push_plain_weights


class Recorder:
    """The client of rank 0."""

    def __init__(self) -> None:
        self.pushes: list[dict[str, torch.Tensor]] = []

    def update_named_params(self, metadata: Any, named_params: Any) -> None:
        self.pushes.append({name: tensor.clone() for name, tensor in named_params})
        assert [name for name, *_ in metadata] == list(self.pushes[-1])

    def reset_prefix_cache(self) -> None:
        pass


def bridge(model: torch.nn.Module) -> Any:
    """TRL's, without the connection that its constructor makes."""
    generation: Any = object.__new__(VLLMGeneration)
    generation.model, generation.mode = model, "server"
    generation.accelerator = SimpleNamespace(is_main_process=dist.get_rank() == 0, device=torch.device("cpu"))
    generation._dist = SimpleNamespace(is_fsdp=True, fsdp_version=2)
    generation._weight_metadata = None
    generation.vllm_client = Recorder()
    return generation


def push_of_a_sharded_model() -> Figures:
    one = toy()
    base = {name: parameter.detach().clone() for name, parameter in one.named_parameters()}
    model = toy()
    attachment = mt.attach(model, mt.Mask.random(model, 0.3))
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    generation = bridge(model)
    push_plain_weights(generation, attachment)
    generation.sync_weights()
    train(model, torch.optim.SGD(attachment.parameters(), lr=0.5), share=own_half)
    generation.sync_weights()
    held = {name: attachment.dense_values(name) for name in attachment.mask.names}
    if dist.get_rank():
        return {"pushes": len(generation.vllm_client.pushes)}
    first, last = generation.vllm_client.pushes
    inside = {name: last[name].flatten()[attachment.mask.indices(name)] for name in held}
    moved = {name: (last[name] != base[name]).flatten().nonzero().flatten() for name in base}
    return {
        "pushes": 2,
        "names": [sorted(first) == sorted(base), sorted(last) == sorted(base)],
        "first is the base": all(torch.equal(first[name], base[name]) for name in base),
        "holds the values": all(torch.equal(inside[name], held[name]) for name in held),
        "moved": sum(map(len, moved.values())),
        "moved outside": sum(
            int((~torch.isin(places, attachment.mask.indices(name))).sum()) for name, places in moved.items()
        ),
    }


serve({"server": push_of_a_sharded_model})
