"""What a mask cannot be attached to, in words."""

from __future__ import annotations

from typing import Any

from torch import nn

from multiticket.mask import Mask
from multiticket.sparse.direct.layers import masked_weights
from multiticket.sparse.hooked.layers import record_of
from multiticket.sparse.sharded import is_sharded


def refuse_what_cannot_work(model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter]) -> None:
    """Raise ValueError, and leave the model as it is, where ``attach`` would train wrongly or not at all.

    Args:
        parameters: the model's ``masked_candidates``.
    """
    if any(masked_weights(module) or record_of(module) for module in model.modules()):
        raise ValueError(
            "This model has an attachment already; detach it, or attach the union of both masks."
        )
    quantised = _quantised(model)
    if quantised is not None:
        raise ValueError(
            f"A quantised base ({quantised}) cannot be trained at single positions; load it in bf16, fp16 or fp32."
        )
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
        if tuple(parameter.shape) != tuple(mask.shape(name)):
            raise ValueError(
                f"{name} has shape {tuple(parameter.shape)}, the mask was made for {tuple(mask.shape(name))}; "
                "build the mask for this model."
            )
        if id(parameter) in renormalised:
            raise ValueError(
                f"{name} belongs to an embedding with max_norm, which rewrites whole rows in place, outside the mask "
                "too; set its max_norm to None, or leave it out of the mask."
            )
        if parameter.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values; load the weights, then attach."
            )
        if is_sharded(parameter):
            raise ValueError(
                f"{name} is already sharded; attach first, then call fully_shard or prepare. Tensor parallelism "
                "(tp_plan) does not go with a mask at all; load the model without it."
            )
        if type(parameter) is not nn.Parameter:
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


_QUANTISED_PARAMETERS = ("Params4bit", "Int8Params")
"""Classes of bitsandbytes, by name: the library need not be there."""


def _quantised(model: nn.Module) -> str | None:
    """What shows that weights of the model are quantised, if anything does."""
    method = getattr(model, "quantization_method", None)
    if method is not None:
        return str(getattr(method, "value", method))
    if getattr(model, "is_quantized", False):
        return "is_quantized"
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ in _QUANTISED_PARAMETERS:
            return f"{name} is a {type(parameter).__name__}"
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            return f"{name} has dtype {str(parameter.dtype).removeprefix('torch.')}"
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] == "qweight" and not buffer.is_floating_point():  # GPTQ, AWQ
            return f"{name} has dtype {str(buffer.dtype).removeprefix('torch.')}"
    return None
