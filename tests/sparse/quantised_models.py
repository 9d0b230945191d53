"""Small models whose linear layers bitsandbytes or torchao quantised, and the same with dense weights."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from multiticket.mask.quantised import dequantise, is_quantised

BITSANDBYTES, TORCHAO = ("nf4", "nf4-plain", "fp4", "int8"), ("torchao-int8", "torchao-int4")
_MARKS = {
    "bitsandbytes": pytest.mark.skipif(
        not find_spec("bitsandbytes"), reason="needs bitsandbytes (pip install)"
    ),
    "torchao": pytest.mark.skipif(not find_spec("torchao"), reason="needs torchao (pip install)"),
}
KINDS = [
    *(pytest.param(kind, marks=_MARKS["bitsandbytes"]) for kind in BITSANDBYTES),
    *(pytest.param(kind, marks=_MARKS["torchao"]) for kind in TORCHAO),
]
ONE_EACH = [KINDS[0], KINDS[3], KINDS[4]]
"""NF4, LLM.int8 and torchao's int8."""
needs_bitsandbytes, needs_torchao = _MARKS["bitsandbytes"], _MARKS["torchao"]


def dense(dtype: torch.dtype = torch.bfloat16, tied: bool = True) -> nn.Module:
    """A Qwen2 whose layers have a multiple of 32 rows, as bitsandbytes' CPU kernels ask."""
    torch.manual_seed(0)
    config = hf.Qwen2Config(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = hf.Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.to(dtype).train()


def dtype_of(kind: str) -> torch.dtype:
    """What such a model computes in; LLM.int8's weights stand for fp16."""
    return torch.float16 if kind == "int8" else torch.bfloat16


def quantised(kind: str, dtype: torch.dtype | None = None, head: bool = False) -> nn.Module:
    """``dense`` with its linear layers quantised, the head too where ``head`` (it is not tied then)."""
    return quantise(dense(dtype or dtype_of(kind), tied=not head), kind, head)


def quantise(model: nn.Module, kind: str, head: bool = False) -> nn.Module:
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and (head or name != "lm_head")
    }
    if kind in TORCHAO:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup

        config = (
            Int8WeightOnlyConfig()
            if kind == "torchao-int8"
            else IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
        )
        quantize_(model, config, filter_fn=lambda _, name: name in layers)
        return model
    for name, layer in layers.items():
        model.set_submodule(name, _by_bitsandbytes(layer, kind))
    return model


def _by_bitsandbytes(layer: nn.Linear, kind: str) -> nn.Module:
    import bitsandbytes as bnb

    sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
    if kind == "int8":
        new = bnb.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
        new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False)
    else:
        new = bnb.nn.Linear4bit(*sizes, bias=bias)
        new.weight = bnb.nn.Params4bit(
            layer.weight.data,
            requires_grad=False,
            quant_type=kind[:3],
            compress_statistics=kind != "nf4-plain",
            module=new,
        )
    new.bias = layer.bias
    return new.to("cpu").train()


def twin(model: nn.Module) -> nn.Module:
    """The dense model with the weights that a quantised one stands for."""
    tied = model.config.tie_word_embeddings
    other = dense(model.model.norm.weight.dtype, tied)
    with torch.no_grad():
        for name, module in other.named_modules():
            theirs = model.get_submodule(name)
            for attribute, parameter in module._parameters.items():
                held = theirs._parameters[attribute]
                if held is not None:
                    parameter.copy_(dequantise(theirs) if is_quantised(held) else held)
    return other


def tokens(seed: int = 1) -> Tensor:
    return torch.randint(1, 61, (2, 7), generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
