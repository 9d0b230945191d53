"""Leaves over the weights' own memory, put where a model's modules look for their weights, and taken away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from multiticket.mask import Mask
from multiticket.mask.fingerprint import fingerprint
from multiticket.sparse.attachment import Attachment
from multiticket.sparse.held import Held
from multiticket.sparse.hooked.collector import Collector
from multiticket.sparse.hooked.follow import Watch, make_alias
from multiticket.sparse.hooked.layers import Record, convert, plain_class, restore, set_leaf, set_plan
from multiticket.sparse.hooked.plan import plan_linear
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.sharded import is_sharded
from multiticket.sparse.surgery import were_tied


class AliasedAttachment(Attachment):
    """What shadows every masked weight by its leaf, keeps the leaves where the weights are, and undoes it."""

    _tensors: dict[str, MaskedTensor]
    """By name; empty once detached."""
    _collector: Collector
    _held: list[Held]
    _handles: list[Any]
    """Hooks of the model."""
    _moved: bool
    """Whether the model was moved in part: nothing is read until the whole of it is where it will be."""

    def _kind_of(self, parameter: nn.Parameter) -> type[MaskedTensor]:
        """What looks after a masked weight."""
        return MaskedTensor

    def _fingerprint(self, originals: dict[str, Tensor]) -> str:
        return fingerprint(self.mask, originals.__getitem__)

    def _convert(self) -> None:
        """Make the modules look after their aliases, and say which embedding ends the backward pass."""
        records: dict[nn.Module, Record] = {self.model: Record(self)}
        for tensor in self._tensors.values():
            for module, attribute in tensor.places:
                records.setdefault(module, Record(self)).tensors[attribute] = tensor
        for module in self.model.modules():
            if any(id(parameter) in self._names_of_frozen for parameter in module._parameters.values()):
                records.setdefault(module, Record(self))
        table = input_embedding(self.model)
        if table is not None:
            records.setdefault(table, Record(self)).anchors = True
        for module, record in records.items():
            convert(module, record)
        self._records = records
        self._width = 0 if table is None else int(table.embedding_dim)  # type: ignore[arg-type]
        self._plan_linear_layers()

    def _plan_linear_layers(self) -> None:
        rule = self.mask.rule
        side = int(rule.options.get("size", 16)) if rule.method == "blocks" else None
        for module, record in self._records.items():
            if isinstance(module, nn.Linear) and "weight" in record.tensors:
                set_plan(module, plan_linear(record.tensors["weight"], self._collector, self._width, side))

    def _give_aliases(self) -> None:
        """Shadow every masked weight by a leaf over its memory."""
        for tensor in self._tensors.values():
            dense = tensor.dense
            tensor.known, tensor.address = dense, tensor.address_now()
            if not tensor.in_memory:
                continue
            tensor.alias = make_alias(tensor)
            if not tensor.is_vector:
                tensor.alias.register_post_accumulate_grad_hook(self._collector.hook(tensor))
                self._give_leaf(tensor)
            elif self._collector.matrices is None or not self._width:
                tensor.alias.register_post_accumulate_grad_hook(lambda _: self._collector.noticed())
            for module, attribute in tensor.places:
                module.__dict__[attribute] = tensor.alias
        for module in self._records:
            if isinstance(module, nn.RNNBase):
                module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        by_id = {id(tensor.dense): tensor for tensor in self._tensors.values() if tensor.in_memory}
        for held in self._held:
            held.replace(lambda one: by_id[id(one)].alias if id(one) in by_id else one)
        self._checks = [
            (module.__dict__, module._parameters, attribute, tensor)
            for tensor in self._tensors.values()
            for module, attribute in tensor.places
        ]
        self._watched = Watch(self._collector.groups)

    def _give_leaf(self, tensor: MaskedTensor) -> None:
        """Linear layers read a leaf of torch's own class: for a compiler and for autograd a subclass costs more."""
        layers = [
            module
            for module, attribute in tensor.places
            if isinstance(module, nn.Linear) and attribute == "weight"
        ]
        if layers:
            leaf = nn.Parameter(tensor.dense.detach())
            leaf.register_post_accumulate_grad_hook(self._collector.hook(tensor))
            for layer in layers:
                set_leaf(layer, leaf)

    @contextmanager
    def _without_aliases(self) -> Iterator[None]:
        """The modules with their own parameters in view."""
        self._take_aliases_away()
        try:
            yield
        finally:
            if all(not tensor.dense.is_meta for tensor in self._tensors.values()):
                self._settle()

    def _take_aliases_away(self) -> None:
        for module, record in self._records.items():
            set_leaf(module, None)
            for attribute in record.tensors:
                module.__dict__.pop(attribute, None)

    def _take_apart(self) -> None:
        for module in self._records:
            plain_class(
                type(module)
            )  # which says so where a class cannot be given back, before anything changes
        for held in self._held:
            held.restore()
        for module in self._records:
            restore(module)
            if isinstance(module, nn.RNNBase):
                module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        for group in self._collector.groups:
            del self.model._parameters[group.name]
        for handle in self._handles:
            handle.remove()

    def _settle(self) -> None:
        """After weights have moved or were replaced: everything that knew where they were is made anew."""
        if any(tensor.dense.is_meta for tensor in self._tensors.values()):
            self._forget_places()
            self._moved = True
            return
        seen: dict[int, str] = {}
        for tensor in self._tensors.values():
            if seen.setdefault(id(tensor.dense), tensor.name) != tensor.name:
                raise RuntimeError(were_tied(tensor.name, seen[id(tensor.dense)]))
            if tensor.shape_now() != tensor.shape:
                raise RuntimeError(
                    f"{tensor.name} had shape {tuple(tensor.shape)} when the mask was attached, and has "
                    f"{tuple(tensor.shape_now())} now; detach before changing a model, and attach a new mask."
                )
            if is_sharded(tensor.dense):
                raise RuntimeError(
                    "fully_shard came after attach, which chose hooks for this machine; attach with "
                    'gradient="blocks" before sharding a model.'
                )
        for group in self._collector.groups:
            device = group.tensors[0].dense.device
            if group.parameter.device != device and not group.parameter.is_meta:
                group.parameter.data = group.parameter.data.to(device)
            group.prepare()
        self._plan_linear_layers()
        self._collector.moved()
        self._give_aliases()
        self._moved = False

    def _forget_places(self) -> None:
        """Of weights without memory: hold nothing of where they lay, so that what they had is given back."""
        self._take_aliases_away()
        for module in self._records:
            if isinstance(module, nn.Linear):
                set_plan(module, None)
        for tensor in self._tensors.values():
            tensor.known = tensor.dense
            if tensor.in_memory:
                tensor.alias = make_alias(tensor)
        for group in self._collector.groups:
            group.forget_memory()
        self._watched = Watch(self._collector.groups)

    def _refuse_if_detached(self) -> None:
        if not self._tensors:
            raise ValueError("This attachment was detached; attach a mask again to train.")


def model_device(parameters: dict[str, nn.Parameter], mask: Mask) -> str:
    """The kind of device that the masked tensors are on."""
    return next((parameters[name].device.type for name in mask.names), "cpu")


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The embedding that the model's tokens go through, if it has one."""
    ask = getattr(model, "get_input_embeddings", None)
    try:
        table = ask() if ask is not None else None
    except (NotImplementedError, AttributeError):  # transformers' answer for models without one
        return None
    plain = isinstance(table, nn.Embedding) and not table.scale_grad_by_freq and not table.sparse
    return table if plain else None
