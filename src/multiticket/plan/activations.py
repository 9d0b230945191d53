"""What autograd keeps for the backward pass, found by running the forward pass on the meta device.

No formula says what a layer saves: a tensor on the meta device has a shape and a dtype and takes part in autograd
like any other, so the model's own forward is run there and what it saves is counted. One thing needs help.
Attention on the meta device would take the plain path, which keeps the (tokens, tokens) scores; here it takes the
flash path, as it does on a CPU and on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from multiticket.arms.state import held_tensors
from multiticket.train.allocator import LARGEST_KEPT

FULL_ROWS = "multiticket_plan"
"""Attention implementation for batches without padding: no mask, so grouped keys and values are not repeated."""
PADDED_ROWS = "multiticket_plan_padded"
"""The same for padded batches: each layer keeps the mask, and its keys and values once for each query head."""


@dataclass
class Saved:
    """Bytes that autograd saves, each storage once."""

    held: set[int]
    """Addresses of the storages that do not count: weights and buffers."""
    storages: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    bytes: int = 0
    largest_layer: int = 0
    """Bytes of the decoder layer that saves most: what checkpointing computes again, one layer at a time."""

    @classmethod
    def beside(cls, model: nn.Module) -> Saved:
        """Of a model, nothing yet."""
        return cls({tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())})

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.held and storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage  # kept alive, or its address might come again
            self.bytes += storage.nbytes()
        return tensor

    def in_heap(self, share: float = 1.0) -> int:
        """Bytes that a CPU's allocator takes from its heap, where each block is only a ``share`` of what it is here;
        larger ones are mapped."""
        sizes = [share * storage.nbytes() for storage in self.storages.values()]
        return round(sum(size for size in sizes if size < LARGEST_KEPT))


def saved_by_forward(model: nn.Module, batch: int, tokens: int) -> Saved:
    """What one forward pass over ``batch`` rows of ``tokens`` tokens saves for the backward pass, and no more of its
    output than that needs. ``model`` is on the meta device or a real one."""
    saved = Saved.beside(model)
    before: list[int] = []

    def enter(*_: Any) -> None:
        before.append(saved.bytes)

    def leave(*_: Any) -> None:
        saved.largest_layer = max(saved.largest_layer, saved.bytes - before.pop())

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        model(**inputs(model, batch, tokens), use_cache=False)
    for hook in hooks:
        hook.remove()
    return saved


def cache_bytes(model: nn.Module, tokens: int) -> int:
    """Bytes of the generation cache of one sequence of ``tokens`` tokens (keys and values, or a recurrent state)."""
    with torch.no_grad():
        output = model(**inputs(model, 1, tokens), use_cache=True)
    cache = output.get("past_key_values", output.get("cache_params"))
    if cache is None:
        raise NotImplementedError("it returns no generation cache")
    layers = [vars(layer) for layer in getattr(cache, "layers", [cache])]
    return sum({id(tensor): tensor.nbytes for _, tensor in held_tensors("", layers, set())}.values())


def inputs(model: nn.Module, batch: int, tokens: int) -> dict[str, Tensor]:
    """What a forward pass reads: rows without padding, of one token."""
    ids = torch.zeros(batch, tokens, dtype=torch.long, device=next(model.parameters()).device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class _Flash(TorchFunctionMode):
    """Attention as flash kernels do it: query, key, value, output and one fp32 number a row and head are saved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **options)
        query, key, value = args
        if options.get("dropout_p") or query.shape[-1] != value.shape[-1]:  # not for the CPU's flash kernel
            return func(*args, **options)
        causal, mask, scale = (options.get(name) for name in ("is_causal", "attn_mask", "scale"))
        bias = None if mask is None else mask.to(query.dtype)
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return operator(query, key, value, 0.0, bool(causal), attn_mask=bias, scale=scale)[0]


def _attention(*args: Any, **kwargs: Any) -> Any:
    with _Flash():
        return sdpa_attention_forward(*args, **kwargs)


def _mask_of_full_rows(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask that transformers makes when it finds no padding; it cannot look for padding on the meta device."""
    return sdpa_mask(*args, **{**kwargs, "attention_mask": None})


def _mask_of_padded_rows(*args: Any, **kwargs: Any) -> Tensor | None:
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(FULL_ROWS, _attention)
AttentionMaskInterface.register(FULL_ROWS, _mask_of_full_rows)
AttentionInterface.register(PADDED_ROWS, _attention)
AttentionMaskInterface.register(PADDED_ROWS, _mask_of_padded_rows)
