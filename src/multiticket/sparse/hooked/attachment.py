"""The path of accelerators: layers run torch's own forward over leaves, whose hooks gather k entries of each gradient.

On a GPU a masked layer's cost is its dispatch: at 0.5B, 57 microseconds of Python a layer where full training has 11.
So nothing of ours runs in a layer: its weight is shadowed by a leaf over the same memory, torch makes the dense
gradient, and a hook gathers k entries of it and lets it go. All values are one parameter (two with vectors), so that
an optimiser step is one kernel, and one more writes them back, storing only what differs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.mask import Mask
from multiticket.mask.fingerprint import fingerprint
from multiticket.mask.names import VALUES_SUFFIX
from multiticket.sparse.attachment import Attachment, find_readers
from multiticket.sparse.autograd.functions import no_autocast
from multiticket.sparse.autograd.fused_head import use_sparse_head
from multiticket.sparse.held import find_held
from multiticket.sparse.hooked.collector import Collector
from multiticket.sparse.hooked.follow import Watch, follow, make_alias
from multiticket.sparse.hooked.layers import Record, compilation, convert, plain_class, restore, set_plan
from multiticket.sparse.hooked.plan import plan_linear
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.hooked.values import MATRICES, VECTORS, Values, flatten
from multiticket.sparse.planned import positions_of
from multiticket.sparse.sharded import is_sharded
from multiticket.sparse.surgery import Structure


class HookedAttachment(Attachment):
    """Each masked weight is a leaf whose gradient is gathered and dropped as soon as it is whole."""

    path = "hooks"

    def __init__(self, model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__(model, mask, parameters)
        readers = find_readers(model)
        self._tensors = {
            name: self._kind_of(parameters[name])(
                name, readers[id(parameters[name])], positions_of(mask, name)
            )
            for name in mask.names
        }
        for tensor in self._tensors.values():
            tensor.when_replaced = self._take_what_was_put_there
        self._held = find_held(model, {id(parameters[name]) for name in mask.names})
        self._structure = Structure(
            model, {name: [module for module, _ in readers[id(parameters[name])]] for name in mask.names}
        )
        with no_autocast(model_device(parameters, mask)):  # which would cast what is joined
            self._set_up(model, mask)

    def _set_up(self, model: nn.Module, mask: Mask) -> None:
        originals = {name: tensor.taken() for name, tensor in self._tensors.items()}
        if not self.planned:
            self.base_fingerprint = self._fingerprint(originals)
        self._showing_base = False
        self._moved = False
        self._loaded_values = False
        kinds = {
            MATRICES: [t for t in self._tensors.values() if not t.is_vector],
            VECTORS: [t for t in self._tensors.values() if t.is_vector],
        }
        groups = {name: Values(model, name, tensors) if tensors else None for name, tensors in kinds.items()}
        self._collector = Collector(groups[MATRICES], groups[VECTORS])
        self._convert()
        self._give_aliases()
        self._handles = [
            model.register_forward_pre_hook(self._prepare_forward),
            model.register_load_state_dict_post_hook(self._after_load),
        ]
        use_sparse_head()
        self._watch()

    # The public part

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The values (k,) of each masked tensor, under the dense weight's name: views of what ``parameters`` gives.

        They share memory and gradient with it, so train one or the other.
        """
        self._refuse_if_detached()
        for name, tensor in self._tensors.items():
            yield name, tensor.values_of.view(tensor)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All values: of matrices (n,), and of norms, biases and other vectors (m,)."""
        self._refuse_if_detached()
        for group in self._collector.groups:
            yield group.parameter

    def gradient_methods(self) -> dict[str, str]:
        """How each tensor's gradient is computed, by name; of a tied weight, in each layer that has it, with ``+``.

        ``hook``, ``factors``, ``thin`` or ``blocks`` in a linear layer, ``lookup`` in an embedding, ``vector`` for
        norms and biases, ``hook`` anywhere else.
        """
        return {
            name: " + ".join(dict.fromkeys(self._method(tensor, *place) for place in tensor.places))
            for name, tensor in self._tensors.items()
        }

    def dense_dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def dense_values(self, name: str) -> Tensor:
        self._refuse_if_detached()
        self._ensure_written()
        return self._tensors[name].taken()

    def flush(self) -> None:
        """Write all values into the dense weights now.

        Needed by no optimiser of ``torch.optim`` and no forward pass of the whole model; only where values were changed
        by hand, and then a weight or a part of the model is read by itself.
        """
        self._refuse_if_detached()
        if self._moved:
            self._settle()
        if self._showing_base:
            return
        self._follow()
        self._write()

    def _write(self) -> None:
        for group in self._collector.groups:
            group.write(group.parameter, tell=True)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model, for a reference policy: its values are in the weights, and no gradient is recorded."""
        self._refuse_if_detached()
        outermost = not self._showing_base
        if outermost:
            self._ensure_written()
            self._show(base=True)
        try:
            with torch.no_grad():
                yield
        finally:
            if outermost:
                self._show(base=False)

    def detach(self, keep: bool = True) -> None:
        """Give the model back as it was: classes, parameters, ``requires_grad``.

        Args:
            keep: True leaves the trained weights in place; False puts the base back, bit for bit.
        """
        self._refuse_if_detached()
        if keep:
            self._ensure_written()
        else:
            for tensor in self._tensors.values():
                if tensor.whole_original is not None:
                    tensor.dense.data.copy_(tensor.whole_original)
            for group in self._collector.groups:
                group.write(group.original, tell=True)
        self._take_apart()
        for name, parameter in self._frozen_parameters().items():
            parameter.requires_grad_(self._required_grad[name])
        self._unwatch()
        self._tensors = {}

    # What the base class asks for

    def _whole_values(self) -> dict[str, Tensor]:
        self._refuse_if_detached()
        self._follow()
        return {
            name: tensor.values_of.parameter.detach()[tensor.begin : tensor.end]
            for name, tensor in self._tensors.items()
        }

    def _set_values(self, values: dict[str, Tensor]) -> None:
        self._refuse_if_detached()
        self._follow()  # what others wrote before is taken, and then written over
        for group in self._collector.groups:
            group.parameter.copy_(flatten(values, group.tensors))

    def _holds_any(self, parameters: set[int]) -> bool:
        return any(
            id(group.parameter) in parameters or any(id(view) in parameters for view in group.views.values())
            for group in self._collector.groups
        )

    def _before_step(self, parameters: set[int]) -> None:
        self._collector.deliver()
        self._follow()

    def _after_step(self, parameters: set[int]) -> None:
        if not self._showing_base:
            self._write()

    def values_by_dtype(self) -> Iterator[tuple[Tensor, torch.dtype]]:
        for group in self._collector.groups:
            values = group.parameter
            dtypes = {tensor.dtype for tensor in group.tensors}
            if len(dtypes) == 1:
                yield values, dtypes.pop()
            else:
                for tensor in group.tensors:
                    yield values[tensor.begin : tensor.end], tensor.dtype

    def rounded_as(self, parameter: Tensor) -> list[tuple[slice, torch.dtype]]:
        for group in self._collector.groups:
            if parameter is group.parameter:
                return [(slice(tensor.begin, tensor.end), tensor.dtype) for tensor in group.tensors]
            for tensor in group.tensors:
                if parameter is group.views.get(tensor.name):
                    return [(slice(None), tensor.dtype)]
        return []

    # Setting up

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

    @contextmanager
    def _without_aliases(self) -> Iterator[None]:
        """The modules with their own parameters in view."""
        for module, record in self._records.items():
            for attribute in record.tensors:
                module.__dict__.pop(attribute, None)
        try:
            yield
        finally:
            if all(not tensor.dense.is_meta for tensor in self._tensors.values()):
                self._settle()

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

    # Keeping up with what others do to the model

    def _settle(self) -> None:
        """After weights have moved or were replaced: everything that knew where they were is made anew."""
        if any(tensor.dense.is_meta for tensor in self._tensors.values()):
            for module, record in self._records.items():
                for attribute in record.tensors:
                    module.__dict__.pop(attribute, None)
            self._moved = True
            return
        for tensor in self._tensors.values():
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

    def _copy_model(self, memo: dict[int, Any]) -> nn.Module:
        """A copy of the model with an attachment of its own, which knows the same base."""
        values = {name: content.clone() for name, content in self._whole_values().items()}
        grads = [group.parameter.grad for group in self._collector.groups]
        handles, records = self._handles, self._records
        saved = {group.name: self.model._parameters[group.name] for group in self._collector.groups}
        self._ensure_written()
        frozen = self._frozen_parameters()
        self._take_apart()
        try:
            twin: nn.Module = copy.deepcopy(self.model, memo)
        finally:
            del handles, records
            self.model._parameters.update(saved)
            self._convert()
            self._give_aliases()
            self._handles = [
                self.model.register_forward_pre_hook(self._prepare_forward),
                self.model.register_load_state_dict_post_hook(self._after_load),
            ]
            for group, grad in zip(self._collector.groups, grads, strict=True):
                group.parameter.grad = grad
        copied = {name: memo[id(parameter)] for name, parameter in frozen.items()}
        other = HookedAttachment(twin, self.mask, copied)
        other._required_grad = dict(self._required_grad)
        other.base_fingerprint = self.base_fingerprint
        with torch.no_grad():
            other._set_values(values)
        for mine, theirs in zip(self._collector.groups, other._collector.groups, strict=True):
            theirs.original = mine.original.clone()
            theirs.parameter.requires_grad_(mine.parameter.requires_grad)
            memo[id(mine.parameter)] = theirs.parameter
        return twin

    def _method(self, tensor: MaskedTensor, module: nn.Module, attribute: str) -> str:
        if tensor.is_vector:
            return "vector"
        record = self._records[module]
        if isinstance(module, nn.Embedding):
            return "lookup"
        return record.linear.method if record.linear is not None and attribute == "weight" else "hook"

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
