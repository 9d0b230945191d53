"""Engines whose weights cannot be changed in place."""

from __future__ import annotations

from typing import Any

from multiticket.integrations.vllm.cpu_weights import SWITCH, packs_weights


def incompatibility(vllm_config: Any) -> str | None:
    """Why an engine of this vLLM configuration cannot take tickets, in a sentence; None where it can."""
    why = None
    if vllm_config.quant_config is not None or vllm_config.model_config.quantization is not None:
        why = "its weights are quantised"
    elif vllm_config.model_config.use_mla:
        why = "its attention caches products of its weights, which would become stale"
    elif vllm_config.lora_config is not None:
        why = "LoRA adapters are switched on, which wrap its layers"
    elif vllm_config.parallel_config.enable_eplb:
        why = "it moves experts between workers while serving"
    elif packs_weights():
        why = (
            f"vLLM's CPU back end packs its weights (for experiments, {SWITCH}=keep leaves them as they are)"
        )
    return f"The engine cannot take a ticket: {why}." if why else None
