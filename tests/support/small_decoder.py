"""Decoders so small that their tests take no time."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OlmoConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SMALL: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
DECODERS = {
    "cohere": CohereConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=23, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "llama": LlamaConfig(**SMALL),
    "olmo": OlmoConfig(**SMALL),
    "phi": PhiConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
}
"""Whose attention is the plain one."""


def small_decoder(config: Any) -> PreTrainedModel:
    """One in float64, ready to say something."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # or one token would be much like another
    model.generation_config.eos_token_id = None
    return model
