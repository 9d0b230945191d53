"""A model with everything that makes applying hard: ties, odd shapes, NaN payloads, a non-contiguous weight."""

from __future__ import annotations

import torch

from multiticket.mask import Mask, fingerprint
from multiticket.ticket import Ticket


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(40, 12)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"up": torch.nn.Linear(12, 30), "down": torch.nn.Linear(30, 12, bias=False)})
            for _ in range(2)
        )
        self.turned = torch.nn.Parameter(torch.randn(20, 15).t())
        self.lm_head = torch.nn.Linear(12, 40, bias=False)
        self.lm_head.weight = self.embed.weight
        assert not self.turned.is_contiguous()


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter as integers, copied: what "bit for bit" compares."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        n: p.detach().clone().contiguous().view(kinds[p.element_size()]) for n, p in model.named_parameters()
    }


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def make_model(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    model = Toy().to(dtype)
    with torch.no_grad():
        model.embed.weight.view(-1)[:3] = torch.tensor([float("nan"), -0.0, float("inf")])
        if dtype == torch.bfloat16:
            # a signalling NaN with a payload, which arithmetic would quieten
            model.embed.weight.view(torch.int16).view(-1)[5] = 0x7F85
    return model


def make_ticket(
    model: torch.nn.Module, mask: Mask, seed: int = 1, dtype: torch.dtype | None = None
) -> Ticket:
    """Random values for ``mask``, bound to ``model`` as it is."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: p.detach().reshape(-1) for name, p in model.named_parameters()}
    values = {
        name: torch.randn(mask.count(name), generator=generator).to(dtype or weights[name].dtype)
        for name in mask.names
    }
    base = fingerprint(mask, lambda name: weights[name][mask.indices(name)])
    return Ticket(mask, values, base, {"seed": seed})
