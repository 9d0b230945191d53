"""What a quantised linear layer holds: bitsandbytes' 4-bit and 8-bit layers, torchao's int8 and int4 weights.

Classes are told by their names, so that neither library need be there. A layer's weight counts with the shape, the name
and the dtype of the dense weight that it stands for, so that one rule gives one mask for a model and its quantised
version. The dense weight is made for a moment, by the library's own dequantisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOUR_BIT, EIGHT_BIT = "Params4bit", "Int8Params"
"""bitsandbytes' parameters."""
TORCHAO = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
"""torchao's tensors that can be dequantised exactly as they are multiplied."""
_LAYERS = {FOUR_BIT: "Linear4bit", EIGHT_BIT: "Linear8bitLt"}


def is_quantised(parameter: Tensor | None) -> bool:
    """Whether ``parameter`` is a quantised weight of bitsandbytes or torchao, of whatever format."""
    kind = type(parameter).__name__
    if kind == FOUR_BIT:
        return getattr(parameter, "quant_state", None) is not None
    if kind == EIGHT_BIT:
        return parameter is not None and parameter.dtype == torch.int8
    return _is_torchao(parameter)


def is_quantised_model(model: nn.Module) -> bool:
    """Whether any weight of ``model`` is quantised so."""
    return any(is_quantised(parameter) for parameter in model.parameters())


def logical_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of the dense weight: bitsandbytes packs 4-bit entries into one column of bytes."""
    held = parameter.quant_state if type(parameter).__name__ == FOUR_BIT and is_quantised(parameter) else None  # type: ignore[attr-defined]
    return tuple(parameter.shape if held is None else held.shape)


def logical_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype of the dense weight. LLM.int8 quantises from fp16 and keeps no other."""
    kind = type(parameter).__name__
    if kind == FOUR_BIT:
        return parameter.quant_state.dtype  # type: ignore[attr-defined]
    return torch.float16 if kind == EIGHT_BIT else parameter.dtype


def quantised_layers(model: nn.Module) -> dict[int, nn.Module]:
    """The module of each quantised weight, by the parameter's ``id``."""
    return {
        id(parameter): module
        for module in model.modules()
        for parameter in module._parameters.values()
        if is_quantised(parameter)
    }


def why_unreadable(layer: nn.Module, weight: Tensor) -> str | None:
    """Why single entries of ``weight`` cannot be read and put in the place of others, in words; None: they can."""
    kind = type(weight).__name__
    if layer._parameters.get("weight") is not weight or not isinstance(layer, nn.Linear):
        return (
            f"it is a {kind} of a {type(layer).__name__}, and of quantised layers only linear ones can train"
        )
    if "forward" in layer.__dict__:
        return "its forward was replaced, as accelerate's device map does; load the model onto one device"
    if kind in _LAYERS:
        plain = any(cls.__name__ == _LAYERS[kind] for cls in type(layer).__mro__)
        if not plain:
            return f"it is a {kind} in a {type(layer).__name__}, where a {_LAYERS[kind]} was expected"
    elif kind not in TORCHAO:
        known = "Int8WeightOnlyConfig or IntxWeightOnlyConfig"
        return f"torchao's {kind} cannot be turned into the weights it stands for; quantise with {known}"
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        return (
            "bitsandbytes has packed it anew for this CPU in a forward pass, and rounded its scales; load the model "
            "again, and do this before it is used"
        )
    quantises_inputs = ("act_quant_kwargs", "activation_quantization", "act_quant_scale", "act_pre_scale")
    if any(getattr(weight, name, None) is not None for name in quantises_inputs):
        return "torchao quantises or scales its inputs too; quantise weights only"
    if weight.is_meta:
        return "it is on the meta device and has no values; load the weights first"
    return None


@torch.no_grad()
def dequantise(layer: Any) -> Tensor:
    """The dense weight (out, in) of a quantised linear layer, in its logical dtype: a new tensor.

    Raises:
        ValueError: the layer is of a kind that cannot be read.
    """
    weight: Any = layer._parameters["weight"]
    kind = type(weight).__name__
    if kind == FOUR_BIT:
        from bitsandbytes.functional import dequantize_4bit  # whoever has such a weight has it loaded

        return dequantize_4bit(weight.detach().view(-1, 1), weight.quant_state)
    if kind == EIGHT_BIT:
        scale = weight.SCB if weight.SCB is not None else layer.state.SCB
        dense = weight.detach().as_subclass(Tensor) * (scale.view(-1, 1) * (1 / 127))
        return dense.to(torch.float16)
    if kind in TORCHAO:
        return weight.detach().dequantize()
    raise ValueError(f"The quantised weight cannot be read: {why_unreadable(layer, weight)}.")


def dense_reader(model: nn.Module, parameters: dict[str, nn.Parameter]) -> Callable[[str], Tensor]:
    """Gives the dense weight of any of ``parameters``, by name: dequantised, or as it is."""
    layers = quantised_layers(model)

    def read(name: str) -> Tensor:
        parameter = parameters[name]
        return dequantise(layers[id(parameter)]) if id(parameter) in layers else parameter.detach()

    return read


def describe(parameter: Tensor) -> str:
    """What identifies the quantisation, for a fingerprint: library, format and block, under names of our own."""
    weight: Any = parameter
    kind = type(parameter).__name__
    if kind == FOUR_BIT:
        return f"bitsandbytes {weight.quant_state.quant_type} {weight.quant_state.blocksize}"
    if kind == EIGHT_BIT:
        return "bitsandbytes int8"
    target = str(getattr(weight, "target_dtype", torch.int8)).removeprefix("torch.")
    return f"torchao {target} {'x'.join(str(int(size)) for size in weight.block_size)}"


def descriptions(parameters: dict[str, nn.Parameter]) -> dict[str, str]:
    """``describe`` of those that are quantised, by name."""
    return {name: describe(parameter) for name, parameter in parameters.items() if is_quantised(parameter)}


def multiply(layer: Any, x: Tensor, product: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """A quantised layer's forward around ``product(x, bias)``: in the dtype that its library computes in.

    bitsandbytes' 4-bit layers compute in ``compute_dtype`` (or x's) and return x's dtype; all others follow autocast.
    """
    given, bias = x.dtype, layer.bias
    four_bit = type(layer._parameters["weight"]).__name__ == FOUR_BIT
    if four_bit:
        x = x.to(layer.compute_dtype or given)
    elif x.device.type != "meta" and torch.is_autocast_enabled(x.device.type) and given != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    y = product(x, bias)
    return y.to(given) if four_bit else y


def linear(x: Tensor, dense: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` in x's dtype."""
    return F.linear(x, dense.to(x.dtype), bias)


def _is_torchao(parameter: Tensor | None) -> bool:
    return any(cls.__name__ == "TorchAOBaseTensor" for cls in type(parameter).__mro__)
