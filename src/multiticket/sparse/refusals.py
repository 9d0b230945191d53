"""What a mask cannot be attached to, in words."""

from __future__ import annotations

from torch import nn

from multiticket.mask import Mask
from multiticket.sparse.distributed import is_sharded
from multiticket.sparse.layers import masked_weights


def refuse_what_cannot_work(model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter]) -> None:
    """Raise ValueError, and leave the model as it is, where ``attach`` would train wrongly or not at all.

    Args:
        parameters: the model's ``masked_candidates``.
    """
    if any(masked_weights(module) for module in model.modules()):
        raise ValueError(
            "This model has an attachment already; detach it, or attach the union of both masks."
        )
    if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None) is not None:
        raise ValueError(
            "A quantised base cannot be trained at single positions; load it in bf16, fp16 or fp32."
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
            raise ValueError(f"{name} is already sharded; attach first, then call fully_shard or prepare.")
