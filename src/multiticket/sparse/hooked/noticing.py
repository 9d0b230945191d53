"""Keeping up with what others do to an attached model: they move, replace, write to and load its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from multiticket.mask.names import VALUES_SUFFIX
from multiticket.sparse.autograd.fused_head import use_sparse_head
from multiticket.sparse.hooked.aliased import AliasedAttachment
from multiticket.sparse.hooked.follow import follow
from multiticket.sparse.hooked.layers import compilation
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.hooked.values import flatten
from multiticket.sparse.surgery import Structure


class NoticingAttachment(AliasedAttachment):
    """What notices, before each forward pass and each step, what others did, and takes it into the values."""

    _structure: Structure
    _showing_base: bool
    """Whether the base's values are in the weights for the moment."""
    _loaded_values: bool
    """Whether the checkpoint that is being loaded has values."""

    def _prepare_forward(self, model: nn.Module, args: Any) -> None:
        compilation.of_one_graph = torch.compiler.is_compiling()
        self._collector.begin()
        if compilation.of_one_graph or self.planned:
            return
        use_sparse_head()  # TRL may have been imported since
        self._notice_changes()
        self._write_what_changed()

    def _notice_changes(self) -> None:
        """Whether anybody replaced or moved a masked weight, other than by moving the whole model."""
        self._structure.refuse_if_changed()
        if self._moved:
            self._settle()
            return
        if not self._watched.anything_replaced():
            return
        for attributes, parameters, attribute, tensor in self._checks:
            dense = parameters.get(attribute)
            if dense is None:
                _ = tensor.dense  # which says so
            moved = dense is not tensor.known or tensor.address_now() != tensor.address
            moved = moved or tensor.shape_now() != tensor.shape
            if moved or (tensor.in_memory and attributes.get(attribute) is not tensor.alias):
                self._take_what_was_put_there()
                return

    @torch.no_grad()
    def _take_what_was_put_there(self) -> None:
        """A weight's data were replaced: its entries at the mask's positions are the values from now on."""
        for _, parameters, attribute, tensor in self._checks:
            if parameters.get(attribute) is not tensor.known:
                raise RuntimeError(
                    f"{tensor.name} was replaced by another parameter, or by a tensor for one call "
                    "(torch.func.functional_call); attach again after changing a model, or attach with "
                    'gradient="blocks".'
                )
        for group in self._collector.groups:
            for tensor in group.tensors:
                moved = tensor.touched or tensor.address_now() != tensor.address
                if tensor.shape_now() == tensor.shape and moved:
                    held = tensor.taken()
                    mine = group.parameter[tensor.begin : tensor.end]
                    mine.copy_(torch.where(mine.to(held.dtype) == held, mine, held.to(mine.dtype)))
        self._settle()

    def _follow(self) -> None:
        """Take what others wrote into the weights; on an accelerator, what shows without a wait."""
        if self._moved or self._showing_base:
            return
        if self._watched.anything_moved():
            for group in self._collector.groups:
                group.forget_memory()
        self._follow_in_place()

    def _follow_in_place(self) -> None:
        """`_follow`, where it is known that no weight has moved."""
        followed = []
        if self._watched.anything_written():
            followed += [
                tensor for tensor in self._tensors.values() if tensor.in_memory and self._written_to(tensor)
            ]
            for tensor in followed:
                follow(tensor)
        for group in self._collector.groups:
            for tensor in group.overwritten():
                follow(tensor)
                followed.append(tensor)
        if followed:
            self._watched.note()

    @staticmethod
    def _written_to(tensor: MaskedTensor) -> bool:
        return tensor.touched or tensor.known._version != tensor.version + tensor.values_of.told

    def _ensure_written(self) -> None:
        self._refuse_if_detached()
        if self._moved:
            self._settle()
        if not self._moved and not self._showing_base:
            self._follow()
        self._write_what_changed(followed=True)

    def _write_what_changed(self, followed: bool = False) -> None:
        """Take what others wrote, unless that was done, and put the values into the weights."""
        if self._moved or self._showing_base:
            return
        if not followed:
            self._follow_in_place()
        for group in self._collector.groups:
            group.ensure_written()

    def _show(self, base: bool) -> None:
        for group in self._collector.groups:
            group.write(group.original if base else group.parameter, tell=False)
        self._showing_base = base

    # Checkpoints

    def _before_load(self, state: dict[str, Any], prefix: str) -> None:
        """Read the other path's checkpoint too, which has an entry a tensor; without any, values follow the weights."""
        names = {name: f"{prefix}{name}{VALUES_SUFFIX}" for name in self._tensors}
        if all(key in state for key in names.values()):
            per_tensor = {name: state.pop(key) for name, key in names.items()}
            for group in self._collector.groups:
                state[prefix + group.name] = flatten(per_tensor, group.tensors)
        self._loaded_values = all(prefix + group.name in state for group in self._collector.groups)

    @torch.no_grad()
    def _after_load(self, model: nn.Module, keys: Any) -> None:
        if any(tensor.dense.is_meta for tensor in self._tensors.values()):
            return
        self._settle()
        if not self._loaded_values:
            for group in self._collector.groups:
                for tensor in group.tensors:
                    group.parameter[tensor.begin : tensor.end].copy_(tensor.taken())
        self.flush()
