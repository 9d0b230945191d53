"""Models for the mask tests: a toy one with weights, and published shapes without any."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch


class Toy(torch.nn.Module):
    """Two numbered layers, an embedding, a norm, an odd shape, and an integer buffer that is not in scope."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 24)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "self_attn": torch.nn.Linear(24, 37),
                    "mlp": torch.nn.Linear(37, 24, bias=False),
                    "norm": torch.nn.LayerNorm(24),
                }
            )
            for _ in range(3)
        )
        self.experts = torch.nn.Parameter(torch.randn(4, 9, 24))
        self.lm_head = torch.nn.Linear(24, 50, bias=False)
        self.lm_head.weight = self.embed.weight


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture(scope="session")
def qwen() -> Callable[[str], torch.nn.Module]:
    """Qwen2.5 of a published size on the meta device."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    sizes = {"0.5B": (896, 4864, 24, 14), "1.5B": (1536, 8960, 28, 12)}

    def build(size: str) -> torch.nn.Module:
        hidden, intermediate, layers, heads = sizes[size]
        config = Qwen2Config(
            vocab_size=151936,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)

    return build
