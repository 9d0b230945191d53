"""Models of transformers, in bf16, that are small enough to be made in each test."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM


def tiny(tied: bool = True, seed: int = 0, gpt2: bool = False) -> torch.nn.Module:
    """A Qwen2, or a GPT-2, of two layers with random weights."""
    torch.manual_seed(seed)
    if gpt2:
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)
        ).bfloat16()
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        max_position_embeddings=32,
    )
    return Qwen2ForCausalLM(config).bfloat16()
