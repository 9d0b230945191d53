"""The path of CPUs and of FSDP2: one parameter of values a tensor, k gradients computed and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.mask import Mask
from multiticket.mask.fingerprint import fingerprint
from multiticket.sparse.attachment import Attachment, find_readers, warn_frozen
from multiticket.sparse.autograd.fused_head import use_sparse_head
from multiticket.sparse.direct.layers import convert, gradient_method, masked_weights, plain_class, restore
from multiticket.sparse.direct.reads import held_weight
from multiticket.sparse.direct.weight import MaskedWeight
from multiticket.sparse.direct.write import Follower, any_changed, follow_together, write_together
from multiticket.sparse.held import find_held
from multiticket.sparse.planned import positions_of
from multiticket.sparse.sharded import local, own_share, reshard, sharded_layers, unshard_head, whole
from multiticket.sparse.surgery import Structure, were_tied


class DirectAttachment(Attachment):
    """Each masked layer reads its weight through a view that autograd connects to the values."""

    path = "direct"

    def __init__(
        self, model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter], gradient: str = "auto"
    ) -> None:
        super().__init__(model, mask, parameters)
        self._gradient = gradient
        self._told_frozen = False
        readers = find_readers(model)
        self._weights: dict[str, MaskedWeight] = {}
        self._by_module: dict[nn.Module, dict[str, MaskedWeight]] = {model: {}}
        for parameter in parameters.values():
            for module, _ in readers[id(parameter)]:
                self._by_module.setdefault(module, {})
        for name in mask.names:
            places = readers[id(parameters[name])]
            owner, attribute = places[0]
            weight = MaskedWeight(name, owner, attribute, positions_of(mask, name), gradient)
            weight.tell_frozen = self._tell_frozen
            self._weights[name] = weight
            for module, attribute in places:
                self._by_module[module][attribute] = weight
        if not self.planned:
            self.base_fingerprint = fingerprint(mask, lambda name: self._weights[name].original)
        by_id = {id(weight.dense): weight for weight in self._weights.values()}
        self._held = find_held(model, set(by_id))
        self._structure = Structure(
            model, {name: [module for module, _ in readers[id(parameters[name])]] for name in mask.names}
        )
        self._follower: Follower | None = None
        self._convert()
        use_sparse_head()
        self._watch()

    def _convert(self) -> None:
        """Make the modules, and what they keep beside their parameters, read their weights through the values."""
        for module, weights in self._by_module.items():
            convert(module, weights, self)
        by_id = {id(weight.dense): weight for weight in self._weights.values()}
        for held in self._held:
            held.replace(lambda one: held_weight(by_id[id(one)]) if id(one) in by_id else one)
        self._before_forward = self.model.register_forward_pre_hook(self._prepare_forward, with_kwargs=True)

    def _take_apart(self) -> None:
        """Undo ``_convert``, and take the values out of the model."""
        for module in self._by_module:
            plain_class(
                type(module)
            )  # which says so where a class cannot be given back, before anything changes
        for weight in self._weights.values():
            del weight.owner._parameters[weight.values_attribute]
        for module in self._by_module:
            restore(module)
        for held in self._held:
            held.restore()
        self._before_forward.remove()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The values (k,) of each masked tensor, under the dense weight's name."""
        for name, weight in self._attached().items():
            yield name, weight.values

    def parameters(self) -> Iterator[nn.Parameter]:
        """The values (k,) of each masked tensor: what an optimiser trains."""
        for _, values in self.named_parameters():
            yield values

    def gradient_methods(self) -> dict[str, str]:
        """How each tensor's gradient is computed, by name; of a tied weight, in each layer that has it, with ``+``.

        ``native``, ``sampled`` or ``blocks`` in a linear layer (``sum`` for its bias), ``lookup`` in an
        embedding, ``dense`` anywhere else.
        """
        methods: dict[str, list[str]] = {name: [] for name in self._attached()}
        for module in self._by_module:
            for weight in masked_weights(module).values():
                methods[weight.name].append(gradient_method(module, weight))
        return {name: " + ".join(dict.fromkeys(ways)) for name, ways in methods.items()}

    def dense_dtype(self, name: str) -> torch.dtype:
        """The dtype of the dense weight ``name``, to which its values are rounded when they are written."""
        return self._weights[name].dense.dtype

    def dense_values(self, name: str) -> Tensor:
        """What the dense weight ``name`` holds at the mask's positions (k,), in its own dtype."""
        weight = self._attached()[name]
        if weight.sharded:
            self._refuse_what_was_not_written([weight])
        weight.follow()
        weight.fresh_dense()
        return weight.written

    def flush(self) -> None:
        """Write all values into the dense weights now.

        Needed by no optimiser and no forward pass, except where FSDP2 shards the model or ``torch.compile`` compiled
        it, and the values were changed otherwise than by a ``torch.optim`` optimiser: a sharded model's ranks write
        together (every rank must call it), and a compiled graph compares no content, so that it has no breaks.
        """
        weights = list(self._attached().values())
        follow_together(weights)
        write_together(weights, whole([weight.values for weight in weights]))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model, for a reference policy: its values are in the weights, and no gradient is recorded."""
        weights = list(self._attached().values())
        outermost = not any(weight.showing_base for weight in weights)
        if outermost:
            follow_together(weights)
            for weight in weights:
                weight.fresh_dense()
                weight.show(base=True)
        try:
            with torch.no_grad():
                yield
        finally:
            if outermost:
                reshard(self.model)
                for weight in weights:
                    weight.show(base=False)

    def values_by_dtype(self) -> Iterator[tuple[Tensor, torch.dtype]]:
        for weight in self._attached().values():
            yield weight.values, weight.dense.dtype

    def rounded_as(self, parameter: Tensor) -> list[tuple[slice, torch.dtype]]:
        return [(slice(None), w.dense.dtype) for w in self._weights.values() if w.values is parameter]

    def _before_step(self, parameters: set[int]) -> None:
        """Take what others wrote into the weights before the values step from where they are."""
        weights = list(self._attached().values())
        self._structure.refuse_if_changed()
        if not self._follow_quickly():
            self._refuse_surgery()
            follow_together([weight for weight in weights if id(weight.values) in parameters])

    def _after_step(self, parameters: set[int]) -> None:
        weights = [weight for weight in self._attached().values() if id(weight.values) in parameters]
        write_together(weights, whole([weight.values for weight in weights]))

    def _whole_values(self) -> dict[str, Tensor]:
        weights = self._attached()
        follow_together(weights.values())
        return dict(zip(weights, whole([weight.values for weight in weights.values()]), strict=True))

    def _set_values(self, values: dict[str, Tensor]) -> None:
        follow_together(self._attached().values())  # what others wrote before is taken, and then written over
        for name, weight in self._attached().items():
            local(weight.values).copy_(own_share(weight.values, values[name]))

    def detach(self, keep: bool = True) -> None:
        """Give the model back as it was: classes, parameters, ``requires_grad``.

        Args:
            keep: True leaves the trained weights in place; False puts the base back, bit for bit.

        Raises:
            ValueError: FSDP2 shards the model; it holds the values, and does not let them go.
        """
        weights = self._attached()
        if any(weight.sharded for weight in weights.values()):
            raise ValueError(
                "FSDP2 does not let go of parameters, so a sharded model cannot be detached; save the ticket and "
                "apply it to the base, or gather the state dict and leave out its values."
            )
        if keep:
            follow_together(weights.values())
        for weight in weights.values():
            if keep:
                weight.fresh_dense()
            else:
                weight.give_back()
        self._take_apart()
        for name, parameter in self._frozen_parameters().items():
            parameter.requires_grad_(self._required_grad[name])
        self._unwatch()
        self._weights, self._follower = {}, None

    def _copy_model(self, memo: dict[int, Any]) -> nn.Module:
        """A copy of the model with an attachment of its own, which knows the same base."""
        weights = self._attached()
        if any(weight.sharded for weight in weights.values()):
            raise RuntimeError("A model that FSDP2 shards cannot be copied; copy it before sharding.")
        values = {name: weight.values for name, weight in weights.items()}
        self.flush()
        frozen = self._frozen_parameters()
        self._unwatch()
        self._take_apart()
        try:
            twin: nn.Module = copy.deepcopy(self.model, memo)
        finally:
            for name, weight in weights.items():
                weight.owner.register_parameter(weight.values_attribute, values[name])
            self._convert()
            self._watch()
        copied = {name: memo[id(parameter)] for name, parameter in frozen.items()}
        other = DirectAttachment(twin, self.mask, copied, self._gradient)
        other._required_grad = dict(self._required_grad)
        other.base_fingerprint = self.base_fingerprint
        for name, weight in other._weights.items():
            weight.original = weights[name].original.clone()
            with torch.no_grad():
                weight.values.copy_(values[name])
            weight.values.requires_grad_(values[name].requires_grad)
            memo[id(values[name])] = weight.values
        other.flush()
        return twin

    def _follow_quickly(self) -> bool:
        """Take what others wrote, where nothing was replaced or moved; otherwise say so, and look again next time."""
        if self._follower is not None and self._follower.holds():
            self._follower.follow()
            return True
        weights = list(self._weights.values())
        self._follower = Follower(weights) if Follower.can_follow(weights) else None
        return False

    def forget_places(self) -> None:
        """After the model was moved: hold nothing of where its weights lay, so that their memory is given back."""
        self._follower = None

    def _refuse_surgery(self) -> None:
        """Whether the values still are those of the model's weights."""
        seen: dict[int, str] = {}
        for name, weight in self._weights.items():
            dense = weight.dense
            if dense.shape != weight.shape:
                weight.follow()  # which says so
            if seen.setdefault(id(dense), name) != name:
                raise RuntimeError(were_tied(name, seen[id(dense)]))

    def _tell_frozen(self) -> None:
        """Said once: a loop that trains, and nothing that trains."""
        if self._told_frozen or torch.compiler.is_compiling():
            return
        if not any(weight.values.requires_grad for weight in self._weights.values()):
            self._told_frozen = True
            warn_frozen()

    def _attached(self) -> dict[str, MaskedWeight]:
        if not self._weights:
            raise ValueError("This attachment was detached; attach a mask again to train.")
        self._notice_sharding()
        reshard(self.model)
        return self._weights

    def _notice_sharding(self) -> bool:
        sharded = bool(sharded_layers(self.model))
        for weight in self._weights.values():
            weight.sharded = weight.sharded or sharded
        return any(weight.sharded for weight in self._weights.values())

    def _refuse_what_was_not_written(self, weights: Iterable[MaskedWeight]) -> None:
        """Where ranks must write together, one alone cannot repair what it finds changed. Not collective."""
        changed = [weight.changed() for weight in weights if not weight.showing_base]
        if changed and torch.stack([flag.to(changed[0].device) for flag in changed]).any():
            raise RuntimeError(
                "The values of a sharded model were changed otherwise than by an optimiser of torch.optim; call "
                "flush() on the attachment after that, on every rank."
            )

    def _prepare_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self.planned:
            return
        self._check_what_changed()
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._structure.refuse_if_changed()
            if not self._follow_quickly():
                self._refuse_surgery()
                follow_together([weight for weight in self._weights.values() if weight.is_known()])
        if kwargs.get("fused_lm_head") and torch.is_grad_enabled():
            unshard_head(model)

    def _check_what_changed(self) -> None:
        """On accelerators, where a read compares no content: compare all of it with one wait for the device."""
        if torch.compiler.is_compiling():
            return
        use_sparse_head()  # TRL may have been imported since
        if self._notice_sharding():
            self._refuse_what_was_not_written(self._weights.values())
            return
        away = [weight for weight in self._weights.values() if weight.values.device.type != "cpu"]
        away = [weight for weight in away if not weight.showing_base]
        for weight in away:
            weight.fresh_dense()
        if any_changed(away):
            self.flush()

    def _holds_any(self, parameters: set[int]) -> bool:
        weights = self._attached().values()
        for weight in weights:
            first = weight.first_values()
            if weight.sharded and id(first) in parameters and first is not weight.values:
                raise RuntimeError(
                    "The optimiser holds the values as they were before fully_shard replaced them, and trains nothing; "
                    "make it after sharding."
                )
        return any(id(weight.values) in parameters for weight in weights)
