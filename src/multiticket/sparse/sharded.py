"""FSDP2: which part of a sharded tensor this rank holds, and how the stepped values reach the dense weights.

``fully_shard`` splits every parameter by rows over the ranks, the values among them, and puts whole ones in place
for the forward and backward pass of their layer. So gradients, optimiser steps and checkpoints of the values need
nothing. What is left is here: after a step each rank holds new values for one stretch of the positions, and the
rows they belong to lie with any rank. One flat all-gather brings the values to all, and each rank writes its own rows.

Everything called *collective* must be called on every rank, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor, of which this rank holds a part."""
    return hasattr(tensor, "placements")


def sharded_layers(model: nn.Module) -> list[Any]:
    """The modules of ``model`` that ``fully_shard`` was called on."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule  # half a second that nobody else should pay

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def reshard(model: nn.Module) -> bool:
    """Put every parameter back into its sharded form, in which it can be read and written for good.

    After a forward pass without gradient FSDP2 leaves the root's parameters whole; what is written then is lost.

    Returns:
        Whether any part of the model is sharded.
    """
    layers = sharded_layers(model)
    for layer in layers:
        layer.reshard()
    return bool(layers)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within, this rank holds every parameter whole and runs forward passes without the others. Begins collectively.

    So ranks generate at their own pace, and gather once instead of at every token, at each of which those that are done
    would have to join in. Nothing may be trained or written meanwhile.
    """
    layers = sharded_layers(model)
    groups: list[Any] = []
    for layer in layers:
        state: Any = layer._get_fsdp_state()
        state._lazy_init()  # which would change what is kept here, with the first forward pass
        groups += getattr(state, "_fsdp_param_groups", None) or filter(None, [state._fsdp_param_group])
    before = [group.post_forward_mesh_info for group in groups]
    for group in groups:
        group.post_forward_mesh_info = None  # what set_reshard_after_forward(False) does, and can be undone
    try:
        for layer in layers:
            layer.unshard()
        yield
    finally:
        for group, info in zip(groups, before, strict=True):
            group.post_forward_mesh_info = info
        for layer in layers:
            layer.reshard()


def unshard_head(model: nn.Module) -> None:
    """Make the head's weights whole for this pass, where ``fully_shard`` was called on the head alone.

    TRL's fused head reads ``lm_head.weight`` and never calls the head, so that nothing else would: it would gather a
    copy of the frozen weight, and the head's values would get no gradient, in silence.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    for layer in sharded_layers(model):
        if layer is head:
            layer.unshard()


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """First and last + 1 of the rows of a sharded ``tensor`` that lie on this rank; equal where it holds none.

    Raises:
        ValueError: the tensor is split otherwise than by rows over one group of ranks.
    """
    mesh, split = _split(tensor)
    rows, ranks = tensor.shape[0], mesh.size(split)
    per_rank = -(-rows // ranks)
    first = min(mesh.get_local_rank(split) * per_rank, rows)
    return first, min(first + per_rank, rows)


def own_share(tensor: Tensor, whole: Tensor) -> Tensor:
    """Of ``whole``, which has the rows of ``tensor``, those that this rank holds of ``tensor``."""
    if not is_sharded(tensor):
        return whole
    first, last = own_rows(tensor)
    return whole[first:last]


def local(tensor: Any) -> Tensor:
    """What this rank holds of ``tensor``: the same memory, without history."""
    held: Tensor = tensor.detach()
    return held.to_local() if is_sharded(held) else held  # type: ignore[attr-defined]


def own_entries(dense: Tensor, positions: Tensor) -> tuple[slice, int]:
    """Which of the sorted flat ``positions`` (k,) lie in own rows of ``dense``, and where those rows begin."""
    if not is_sharded(dense):
        return slice(0, positions.numel()), 0
    row = dense.shape[1:].numel()
    first, last = own_rows(dense)
    bounds = torch.tensor([first * row, last * row], device=positions.device)
    begin, end = torch.searchsorted(positions.long(), bounds).tolist()
    return slice(begin, end), first * row


@torch.no_grad()
def whole(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each 1-D tensor (k,), whole on every rank: one flat all-gather for each group of ranks and dtype. Collective."""
    found: list[Tensor] = [tensor.detach() for tensor in tensors]
    together: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if is_sharded(tensor):
            mesh, split = _split(tensor)
            together.setdefault((mesh.get_group(split), tensor.dtype), []).append(index)
    for (group, _), indices in together.items():
        for index, gathered in zip(indices, _gather([tensors[i] for i in indices], group), strict=True):
            found[index] = gathered
    return found


def _gather(tensors: Sequence[Tensor], group: Any) -> list[Tensor]:
    ranks = dist.get_world_size(group)
    lengths = [-(-tensor.shape[0] // ranks) for tensor in tensors]
    shares = [local(tensor) for tensor in tensors]
    padded = [
        nn.functional.pad(share, (0, length - share.numel()))
        for share, length in zip(shares, lengths, strict=True)
    ]
    mesh: Any = tensors[0].device_mesh  # type: ignore[attr-defined]
    flat = torch.cat(padded).to(
        mesh.device_type
    )  # shares kept on the CPU travel over the accelerator's group
    gathered = flat.new_empty(ranks * flat.numel())
    all_gather = (
        getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    )  # its name before torch 2.13
    all_gather(gathered, flat, group=group)
    pieces = gathered.view(ranks, -1).split(lengths, dim=1)
    return [
        piece.contiguous().view(-1)[: tensor.shape[0]].to(share.device)
        for piece, tensor, share in zip(pieces, tensors, shares, strict=True)
    ]


def _split(tensor: Any) -> tuple[Any, int]:
    """The device mesh of a sharded tensor, and the one dimension of it that splits the tensor's rows."""
    from torch.distributed.tensor import Shard

    dimensions = [index for index, placed in enumerate(tensor.placements) if not placed.is_replicate()]
    by_rows = [
        type(tensor.placements[index]) is Shard and tensor.placements[index].dim == 0 for index in dimensions
    ]
    if by_rows != [True]:
        raise ValueError(
            f"A masked weight is sharded as {tuple(tensor.placements)}; values can be written only where fully_shard "
            "splits rows over one group of ranks, without tensor parallelism or a shard_placement_fn."
        )
    return tensor.device_mesh, dimensions[0]
