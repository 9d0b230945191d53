"""``attach``: the one way in, which chooses the path that a model's machine wants."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn

from multiticket.mask import Mask
from multiticket.mask.names import frozen_by_choice, masked_candidates
from multiticket.mask.quantised import is_quantised
from multiticket.sparse.attachment import Attachment
from multiticket.sparse.direct.attachment import DirectAttachment
from multiticket.sparse.gradient.choice import refuse_method_that_cannot_work
from multiticket.sparse.hooked.aliased import input_embedding
from multiticket.sparse.hooked.attachment import HookedAttachment
from multiticket.sparse.planned import device_of, planning
from multiticket.sparse.quantised.attachment import QuantisedAttachment
from multiticket.sparse.support import refuse_method_of_dense_weights, refuse_what_cannot_work
from multiticket.sparse.undo import undone_on_failure

HOOKS = "hooks"


def attach(model: nn.Module, mask: Mask, gradient: str = "auto") -> Attachment:
    """Freeze ``model`` and train the values at the mask's positions instead, in fp32.

    Forward passes read the dense weights as before; backward passes give the values their gradient, which is the
    dense gradient at the mask's positions, and keep no dense one. Any optimiser over the attachment's parameters
    (or over the model's parameters that require a gradient) trains the mask and nothing else. Tensors that are frozen
    (``requires_grad`` False) where others are not are left as they are, unless the mask's scope names them.

    Args:
        model: any module with real weights, on any device, in any floating-point dtype; or quantised by bitsandbytes
            (4 or 8 bits) or torchao (int8 or int4, weights only), whose layers train through copies made for each
            product.
        mask: positions in this model's tensors.
        gradient: how the values get their gradient. ``hooks``: torch's own dense gradient of one weight at a time, of
            which k entries are gathered; for accelerators. ``native``, ``sampled`` or ``blocks``: k gradients computed
            in each linear layer; for CPUs and for FSDP2. ``auto``: ``hooks`` where the weights are on an accelerator or
            the machine has one, except among several ranks that accelerate does not run as plain data parallelism
            (there FSDP2 may follow); else the fastest of the three. A quantised base takes ``auto`` or ``hooks``.

    Returns:
        The attachment, which knows the values, the base and the way back.

    Raises:
        ValueError: the model has an attachment already, lacks a masked tensor or has another shape for it, is
            quantised in another way, partitioned (DeepSpeed ZeRO-3, FSDP), has no weights yet (meta device), or was
            made within ``torch.inference_mode``; or ``gradient`` is none of those, or needs a C compiler that is not
            there. Whatever is raised, the model is as it was.
    """
    parameters = masked_candidates(model)
    mask = _leave_frozen_alone(model, mask)
    refuse_what_cannot_work(model, mask, parameters)
    quantised = any(is_quantised(parameters[name]) for name in mask.names)
    if quantised:
        refuse_method_of_dense_weights(gradient)
    hooks = not quantised and (
        gradient == HOOKS or (gradient == "auto" and _hooks_fit(model, parameters, mask))
    )
    if not hooks and not quantised:
        refuse_method_that_cannot_work(gradient)
    with undone_on_failure(model):
        if quantised:
            return QuantisedAttachment(model, mask, parameters)
        if hooks:
            return HookedAttachment(model, mask, parameters)
        return DirectAttachment(model, mask, parameters, gradient)


def _leave_frozen_alone(model: nn.Module, mask: Mask) -> Mask:
    """What was frozen since the mask was made does not train either, unless its scope or its positions name it."""
    if mask.rule.scope != "all" or mask.rule.density is None:
        return mask
    frozen = frozen_by_choice(model) & set(mask.shapes)
    return mask.without(frozen) if frozen else mask


def _hooks_fit(model: nn.Module, parameters: dict[str, nn.Parameter], mask: Mask) -> bool:
    devices = {device_of(parameters[name]) for name in mask.names}
    if len(devices) != 1 or (next(iter(devices)).type == "cpu" and not _may_move_to_an_accelerator()):
        return False
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return ranks == 1 or (_data_parallel_by_accelerate() and input_embedding(model) is not None)


def _may_move_to_an_accelerator() -> bool:
    return torch.accelerator.is_available() and not planning()


def _data_parallel_by_accelerate() -> bool:
    """Whether accelerate, if it is in use, will wrap models in DistributedDataParallel."""
    state = sys.modules.get("accelerate.state")
    shared = getattr(getattr(state, "AcceleratorState", None), "_shared_state", {})
    return str(getattr(shared.get("distributed_type"), "value", "")).startswith("MULTI_")
