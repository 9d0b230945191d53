"""What a mask cannot be attached to, in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from multiticket.mask import Mask
from multiticket.mask.quantised import (
    EIGHT_BIT,
    FOUR_BIT,
    is_quantised,
    is_quantised_model,
    logical_shape,
    quantised_layers,
    why_unreadable,
)
from multiticket.sparse.direct.layers import masked_weights
from multiticket.sparse.hooked.layers import record_of
from multiticket.sparse.planned import planning
from multiticket.sparse.sharded import is_sharded
from multiticket.ticket.overlay import is_overlaid


def refuse_what_cannot_work(model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter]) -> None:
    """Raise ValueError, and leave the model as it is, where ``attach`` would train wrongly or not at all.

    Args:
        parameters: the model's ``masked_candidates``.
    """
    if torch.is_inference_mode_enabled() or any(p.is_inference() for p in parameters.values()):
        raise ValueError(
            "Tensors made within torch.inference_mode cannot be trained; load the model and attach outside of it."
        )
    if any(masked_weights(module) or record_of(module) for module in model.modules()):
        raise ValueError(
            "This model has an attachment already; detach it, or attach the union of both masks."
        )
    _refuse_quantised(model, mask, parameters)
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            "DistributedDataParallel would not reduce values it did not see; attach first, then wrap the model."
        )
    if any("_fsdp_wrapped_module" in name for name, _ in model.named_modules()):
        raise ValueError(
            "FullyShardedDataParallel (FSDP1) flattens the weights, so positions cannot be found; attach first, then "
            "call fully_shard (FSDP2)."
        )
    if any(hasattr(parameter, "ds_id") for parameter in parameters.values()):
        raise ValueError(
            "DeepSpeed ZeRO-3 partitions the weights, so positions cannot be found; use FSDP2 (fully_shard)."
        )
    renormalised = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.max_norm is not None
    }
    for name in mask.names:
        parameter = parameters.get(name)
        if parameter is None:
            raise ValueError(
                f"The mask has positions in {name!r}, which this model lacks; build it for this model."
            )
        if logical_shape(parameter) != tuple(mask.shape(name)):
            raise ValueError(
                f"{name} has shape {logical_shape(parameter)}, the mask was made for {tuple(mask.shape(name))}; "
                "build the mask for this model."
            )
        if id(parameter) in renormalised:
            raise ValueError(
                f"{name} belongs to an embedding with max_norm, which rewrites whole rows in place, outside the mask "
                "too; set its max_norm to None, or leave it out of the mask."
            )
        if parameter.is_meta and not planning():
            raise ValueError(
                f"{name} is on the meta device and has no values; load the weights, then attach."
            )
        if is_sharded(parameter):
            raise ValueError(
                f"{name} is already sharded; attach first, then call fully_shard or prepare. Tensor parallelism "
                "(tp_plan) does not go with a mask at all; load the model without it."
            )
        if type(parameter) is not nn.Parameter and not is_quantised(parameter):
            raise ValueError(
                f"{name} is held as a {type(parameter).__name__}, in which single entries cannot be written; "
                "load the model with plain weights in bf16, fp16 or fp32."
            )


def refuse_strategy(accelerator: Any) -> None:
    """Raise ValueError where ``accelerator`` will partition the model in a way that an attachment does not survive."""
    state = accelerator.state
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError(
            "accelerate is set to FSDP version 1, which flattens the weights, so positions cannot be found; set "
            "fsdp_version to 2."
        )
    deepspeed = getattr(state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError(
            "DeepSpeed ZeRO-3 partitions the weights, so positions cannot be found; use FSDP2 (fsdp_version: 2)."
        )
    if deepspeed is not None:
        raise ValueError(
            f"DeepSpeed ZeRO-{deepspeed.zero_stage} copies what trains into flat tensors of its own, past the dense "
            "weights; a ticket's optimizer state is too small to be worth sharding: use plain data parallelism (DDP), "
            "or FSDP2 (fsdp_version: 2)."
        )


def refuse_method_of_dense_weights(gradient: str) -> None:
    """Raise ValueError where a quantised base is to train by a method that writes into dense weights."""
    if gradient not in ("auto", "hooks"):
        raise ValueError(
            f"A quantised base cannot train with gradient={gradient!r}, which writes into dense weights; leave it at "
            "auto."
        )


def _refuse_quantised(model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter]) -> None:
    """Raise ValueError where weights are quantised in a way that cannot train, or cannot even be seen."""
    layers = quantised_layers(model)
    if any(is_overlaid(layer) for layer in layers.values()):
        raise ValueError("A ticket is applied to this quantised model; revert it, then attach.")
    masked = {name: parameters[name] for name in mask.names if name in parameters}
    quantised = {name: parameter for name, parameter in masked.items() if is_quantised(parameter)}
    for name, parameter in quantised.items():
        if why := why_unreadable(layers[id(parameter)], parameter):
            raise ValueError(f"The quantised weight {name} cannot train: {why}.")
    if quantised and len({parameter.device for parameter in masked.values()}) > 1:
        raise ValueError(
            "A quantised base trains on one device, and the masked tensors of this one are on several; load it with "
            'device_map={"": 0}, or another single device.'
        )
    _refuse_biases_that_are_cast(model, masked)
    if not quantised:
        unseen = _quantised_unseen(model)
        if unseen is not None:
            raise ValueError(
                f"A quantised base ({unseen}) of this kind cannot be trained at single positions; quantise it with "
                "bitsandbytes or torchao, or load it in bf16, fp16 or fp32."
            )


def _refuse_biases_that_are_cast(model: nn.Module, masked: dict[str, nn.Parameter]) -> None:
    """bitsandbytes' own forward, which a layer keeps if its weight is not masked, casts its bias in place."""
    names = {id(parameter): name for name, parameter in masked.items()}
    for layer in model.modules():
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        if bias is None or id(bias) not in names or id(weight) in names or not is_quantised(weight):
            continue
        compute = getattr(layer, "compute_dtype", None)
        if compute not in (None, bias.dtype):
            raise ValueError(
                f"{names[id(bias)]} is {str(bias.dtype).removeprefix('torch.')} in a layer that computes in "
                f"{str(compute).removeprefix('torch.')}, and bitsandbytes casts it in place; mask the layer's weight "
                "too, or leave its bias out."
            )


def _quantised_unseen(model: nn.Module) -> str | None:
    """What shows that weights of the model are quantised in a way that a mask does not see, if anything does."""
    if is_quantised_model(model):
        return None
    method = getattr(model, "quantization_method", None)
    if method is not None:
        return str(getattr(method, "value", method))
    if getattr(model, "is_quantized", False):
        return "is_quantized"
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ in (FOUR_BIT, EIGHT_BIT):
            return f"{name} is a {type(parameter).__name__}"
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            return f"{name} has dtype {str(parameter.dtype).removeprefix('torch.')}"
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] == "qweight" and not buffer.is_floating_point():  # GPTQ, AWQ
            return f"{name} has dtype {str(buffer.dtype).removeprefix('torch.')}"
    return None
