"""Random models of every family the engine must handle, small enough for milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn

COMMON = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2}
ATTENTION = {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}


def qwen2(tied: bool = True) -> nn.Module:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**COMMON, **ATTENTION, tie_word_embeddings=tied))


def llama() -> nn.Module:
    config = hf.LlamaConfig(
        **COMMON, **ATTENTION, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, pad_token_id=0
    )
    return hf.LlamaForCausalLM(config)


def gemma3() -> nn.Module:
    config = hf.Gemma3TextConfig(**COMMON, **ATTENTION, head_dim=8, sliding_window=4)
    return hf.Gemma3ForCausalLM(config)


def gpt2() -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=61,
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_positions=32,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return hf.GPT2LMHeadModel(config)


def mamba() -> nn.Module:
    return hf.MambaForCausalLM(hf.MambaConfig(**COMMON, state_size=4, time_step_rank=3, use_mambapy=False))


def qwen3_moe(experts: str = "grouped_mm") -> nn.Module:
    config = hf.Qwen3MoeConfig(
        **COMMON, **ATTENTION, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12
    )
    config._experts_implementation = experts
    return hf.Qwen3MoeForCausalLM(config)


def qwen3_moe_looped() -> nn.Module:
    """Reads one expert at a time, and works in fp64, where the grouped product does not."""
    return qwen3_moe("eager")


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "qwen2": qwen2,
    "llama": llama,
    "gemma3": gemma3,
    "gpt2": gpt2,
    "mamba": mamba,
    "qwen3_moe": qwen3_moe,
    "qwen3_moe_looped": qwen3_moe_looped,
}


def build(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The family's model; biases and norms are moved off their initial zeros and ones."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.to(dtype).train()


def tokens(batch: int = 3, length: int = 7, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 61, (batch, length), generator=generator)


def positions_of(rows: int, columns: int, k: int, seed: int) -> torch.Tensor:
    """``k`` random entries of a weight, as sorted flat positions in int32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(rows * columns, generator=generator)[:k].sort().values.to(torch.int32)
