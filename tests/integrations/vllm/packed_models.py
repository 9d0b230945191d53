"""Models that pack and shard their weights as an inference engine does, with loaders in vLLM's manner."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from multiticket.mask import Mask, fingerprint

HIDDEN, HEADS, KV_HEADS, HEAD, MIDDLE, VOCAB, PADDED = 8, 4, 2, 2, 12, 10, 12

SHAPES = {
    "embed.weight": (VOCAB, HIDDEN),
    "q.weight": (HEADS * HEAD, HIDDEN),
    "k.weight": (KV_HEADS * HEAD, HIDDEN),
    "v.weight": (KV_HEADS * HEAD, HIDDEN),
    "q.bias": (HEADS * HEAD,),
    "gate.weight": (MIDDLE, HIDDEN),
    "up.weight": (MIDDLE, HIDDEN),
    "down.weight": (HIDDEN, MIDDLE),
    "expert.weight": (3, HIDDEN, MIDDLE),
    "norm.weight": (HIDDEN,),
}


def checkpoint(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of SHAPES."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


class Packed(nn.Module):
    """One rank of a tensor-parallel model: q, k, v in one matrix, gate and up in another, vocabulary padded."""

    def __init__(self, rank: int = 0, ranks: int = 1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.rank, self.ranks = rank, ranks
        self.kv_ranks = min(ranks, KV_HEADS)  # more ranks than key heads: each head on several ranks
        kv = KV_HEADS // self.kv_ranks * HEAD
        q = HEADS // ranks * HEAD

        def parameter(*shape: int, of: torch.dtype = dtype) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, torch.nan).to(of), requires_grad=False)

        self.embed = parameter(PADDED // ranks, HIDDEN)
        self.qkv = parameter(q + 2 * kv, HIDDEN)
        self.qkv_bias = parameter(q + 2 * kv)
        self.gate_up = parameter(2 * MIDDLE // ranks, HIDDEN)
        self.down = parameter(HIDDEN, MIDDLE // ranks)
        self.experts = parameter(3, MIDDLE // ranks, HIDDEN)  # transposed
        self.norm = parameter(HIDDEN, of=torch.float32)
        self.begins = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv)}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, loaded in weights:
            part, kind = name.split(".")
            if part in self.begins:
                begin, size = self.begins[part]
                target = (self.qkv_bias if kind == "bias" else self.qkv).data.narrow(0, begin, size)
                shard = self.rank if part == "q" else self.rank * self.kv_ranks // self.ranks
                target.copy_(loaded.narrow(0, shard * size, size))
            elif part == "embed":
                size = PADDED // self.ranks
                begin, end = min(self.rank * size, VOCAB), min((self.rank + 1) * size, VOCAB)
                self.embed[: end - begin].data.copy_(loaded[begin:end])
                self.embed[end - begin :].data.fill_(0)
            elif part in ("gate", "up"):
                half = self.gate_up.data.chunk(2, 0)[part == "up"]
                half.copy_(loaded.chunk(self.ranks, 0)[self.rank])
            elif part == "down":
                size = MIDDLE // self.ranks
                self.down.data.copy_(loaded.narrow(1, self.rank * size, size))
            elif part == "expert":
                size = MIDDLE // self.ranks
                for expert in range(3):
                    piece = loaded[expert][:, self.rank * size : (self.rank + 1) * size]
                    self.experts.data[expert].copy_(piece.transpose(0, 1))
            else:
                self.norm.data.copy_(loaded)


def loaded(
    base: dict[str, Tensor], rank: int = 0, ranks: int = 1, dtype: torch.dtype = torch.float32
) -> Packed:
    """A rank that holds its part of a checkpoint."""
    model = Packed(rank, ranks, dtype)
    model.load_weights(base.items())
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, copied."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one)


def values_of(base: dict[str, Tensor], mask: Mask) -> Tensor:
    """A checkpoint's values at the mask's positions, (k,)."""
    return torch.cat([base[name].view(-1)[mask.indices(name)] for name in mask.names])


def with_values(base: dict[str, Tensor], mask: Mask, values: Tensor) -> dict[str, Tensor]:
    """The checkpoint with ``values`` (k,) at the mask's positions."""
    changed = {name: tensor.clone() for name, tensor in base.items()}
    for name, part in zip(mask.names, values.split([mask.count(name) for name in mask.names]), strict=True):
        changed[name].view(-1)[mask.indices(name)] = part.to(changed[name].dtype)
    return changed


def fingerprint_of(base: dict[str, Tensor], mask: Mask) -> str:
    return fingerprint(mask, lambda name: base[name].view(-1)[mask.indices(name)])
