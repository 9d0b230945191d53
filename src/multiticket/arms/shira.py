"""Training PEFT's SHiRA: as many values as a LoRA of rank r, at random positions of each linear layer.

What differs from a ticket on the same layers: values are added to the weights instead of taking their places, every
forward pass clones every adapted weight, the gradient is computed for whole weights, and one seed gives layers of one
shape the same positions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multiticket.arms.adapter import LAYERS, AdapterArm
from multiticket.arms.protocol import Products, Work
from multiticket.arms.state import State, storage_bytes
from multiticket.config import RunConfig
from multiticket.mask import Mask


class SHiRA(AdapterArm):
    name = "shira"

    def settings(self, peft: Any, rank: int, config: RunConfig) -> Any:
        adapter = peft.ShiraConfig(r=rank, random_seed=config.seed, **LAYERS)
        adapter.mask_fn = partial(_mask, adapter.mask_fn)
        return adapter

    def plan(
        self, model: Any, config: RunConfig, mask: Mask, batch: dict[str, Tensor], masters: bool
    ) -> tuple[Any, State]:
        adapted, state = super().plan(model, config, mask, batch, masters)
        layers = [layer for layer in adapted.modules() if hasattr(layer, "shira_indices")]
        for layer in layers:
            layer.get_delta_weight = partial(_planned_delta, layer)
        positions = storage_bytes(indices for layer in layers for indices in layer.shira_indices.values())
        return adapted, replace(state, positions=positions)

    def work(self, products: Products) -> Work:
        return Work(weight_gradient=products.linear, input_gradient=-products.spared)


def _mask(choose: Any, layer: Any, r: int, **options: Any) -> Tensor:
    """PEFT's mask of a layer; on the meta device, which has nothing to choose with, the first positions."""
    if not layer.weight.is_meta:
        return choose(layer, r, **options)
    rows, columns = layer.weight.shape
    mask = torch.zeros(rows * columns, dtype=torch.bool, device="cpu")
    mask[: r * (rows + columns)] = True
    return mask.view(rows, columns)


def _planned_delta(layer: Any, adapter: str) -> Tensor:
    return _PlannedDelta.apply(layer.shira_weight[adapter], layer.out_features, layer.in_features)


class _PlannedDelta(torch.autograd.Function):
    """What PEFT's sparse tensor adds to a weight, on the meta device, which knows no sparse sum: it saves as much."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: int, columns: int) -> Tensor:
        ctx.save_for_backward(values.new_empty(2, len(values), dtype=torch.int64), torch.empty_like(values))
        return values.new_empty(rows, columns)


ARM = SHiRA()
