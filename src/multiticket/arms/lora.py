"""Training a LoRA adapter, scaled by alpha over its rank, so that one rate suits all ranks."""

from __future__ import annotations

from typing import Any

from multiticket.arms.adapter import LAYERS, AdapterArm
from multiticket.arms.protocol import Products, Work
from multiticket.config import RunConfig


class LoRA(AdapterArm):
    name = "lora"

    def settings(self, peft: Any, rank: int, config: RunConfig) -> Any:
        return peft.LoraConfig(r=rank, lora_alpha=config.lora_alpha, **LAYERS)

    def work(self, products: Products) -> Work:
        """Two thin products a layer in each of forward, input gradient and weight gradient."""
        spared = products.spared + products.rank * sum(columns for _, columns in products.first)
        thin = products.trained
        return Work(weight_gradient=thin, forward=thin, input_gradient=thin - spared)


ARM = LoRA()
