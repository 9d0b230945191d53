"""Attach a mask to a model, train its values, detach."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from multiticket.mask import Mask
from multiticket.mask.fingerprint import fingerprint
from multiticket.mask.names import VALUES_SUFFIX, masked_candidates
from multiticket.sparse.crossover import refuse_method_that_cannot_work
from multiticket.sparse.distributed import local, own_share, reshard, sharded_layers, unshard_head, whole
from multiticket.sparse.fused_head import use_sparse_head
from multiticket.sparse.layers import convert, gradient_method, masked_weights, restore
from multiticket.sparse.masked_weight import MaskedWeight
from multiticket.sparse.refusals import refuse_what_cannot_work
from multiticket.sparse.write_together import any_changed, write_together

if TYPE_CHECKING:
    from multiticket.ticket import Ticket

_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()


def attach(model: nn.Module, mask: Mask, gradient: str = "auto") -> Attachment:
    """Freeze ``model`` and add one fp32 parameter of values for each masked tensor.

    Forward passes read the dense weights as before; backward passes give the values their gradient, which is the
    dense gradient at the mask's positions, and keep no dense one. Any optimiser over the attachment's parameters
    (or over the model's parameters that require a gradient) trains the mask and nothing else.

    Args:
        model: any module with real weights, on any device, in any floating-point dtype.
        mask: positions in this model's tensors.
        gradient: how linear layers compute the values' gradient: ``auto`` (by ``sparse.crossover``), ``native``,
            ``sampled``, ``blocks`` or ``triton``.

    Returns:
        The attachment, which knows the values, the base and the way back.

    Raises:
        ValueError: the model has an attachment already, lacks a masked tensor or has another shape for it, is
            quantised, partitioned (DeepSpeed ZeRO-3, FSDP) or has no weights yet (meta device); or ``gradient`` is
            none of those, or needs Triton or a C compiler that is not there.
    """
    parameters = masked_candidates(model)
    refuse_what_cannot_work(model, mask, parameters)
    refuse_method_that_cannot_work(gradient)
    return Attachment(model, mask, parameters, gradient)


class Attachment:
    """A model in which only a mask's values train. Made by ``attach``.

    ``fully_shard`` (FSDP2) may follow. Then ``flush``, ``state_dict`` and ``load_state_dict`` are collective: every
    rank must call them. ``ticket`` and ``dense_values`` are not, so that one rank may save the ticket.
    """

    model: nn.Module
    mask: Mask
    base_fingerprint: str
    """Hash of the base's values at the mask's positions; a ticket made here can be applied to that base only."""

    def __init__(
        self, model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter], gradient: str = "auto"
    ) -> None:
        self.model = model
        self.mask = mask
        self._required_grad = {name: parameter.requires_grad for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        readers = find_readers(model)
        self._weights: dict[str, MaskedWeight] = {}
        by_module: dict[nn.Module, dict[str, MaskedWeight]] = {}
        for name in mask.names:
            places = readers[id(parameters[name])]
            owner, attribute = places[0]
            weight = MaskedWeight(name, owner, attribute, mask.indices(name), gradient)
            self._weights[name] = weight
            for module, attribute in places:
                by_module.setdefault(module, {})[attribute] = weight
            if len(places) > 1 and hasattr(model, "tie_weights"):
                by_module.setdefault(model, {})
        for module, weights in by_module.items():
            convert(module, weights)
        self._modules = list(by_module)
        self.base_fingerprint = fingerprint(mask, lambda name: self._weights[name].original)
        self._ignored_on_save = _leave_values_out_of_checkpoints(model)
        self._before_forward = model.register_forward_pre_hook(self._prepare_forward, with_kwargs=True)
        use_sparse_head()
        _attachments.add(self)
        _write_after_every_optimizer_step()

    @property
    def nnz(self) -> int:
        """Number of trained values."""
        return self.mask.nnz

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

        ``native``, ``sampled``, ``blocks`` or ``triton`` in a linear layer (``sum`` for its bias), ``lookup`` in an
        embedding, ``dense`` anywhere else.
        """
        methods: dict[str, list[str]] = {name: [] for name in self._attached()}
        for module in self._modules:
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
        weight.fresh_dense()
        return weight.written

    def flush(self) -> None:
        """Write all values into the dense weights now.

        Needed by no optimiser and no forward pass, except where FSDP2 shards the model or ``torch.compile`` compiled
        it, and the values were changed otherwise than by a ``torch.optim`` optimiser: a sharded model's ranks write
        together (every rank must call it), and a compiled graph compares no content, so that it has no breaks.
        """
        weights = list(self._attached().values())
        write_together(weights, whole([weight.values for weight in weights]))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model, for a reference policy: its values are in the weights, and no gradient is recorded."""
        weights = list(self._attached().values())
        outermost = not any(weight.showing_base for weight in weights)
        if outermost:
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

    def ticket(self, **provenance: Any) -> Ticket:
        """What was learned, as a ticket: the mask's rule and the values in the dtype of the weights.

        Args:
            provenance: anything JSON can hold, kept in the ticket (task, arm, steps, scores, ...).
        """
        from multiticket.ticket import Ticket  # the one look down the list of folders: a convenience

        return Ticket.from_attachment(self, **provenance)

    def state_dict(self) -> dict[str, Any]:
        """The values (k,) in fp32 by tensor name, the mask's rule and the base's fingerprint: enough to resume."""
        weights = self._attached()
        gathered = whole([weight.values for weight in weights.values()])
        values = {name: values.clone() for name, values in zip(weights, gathered, strict=True)}
        return {"values": values, "rule": self.mask.rule.to_json(), "fingerprint": self.base_fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``, taken on this base with this mask.

        Raises:
            ValueError: the state is of another mask or another base; nothing is changed then.
        """
        weights = self._attached()
        if state["rule"] != self.mask.rule.to_json() or set(state["values"]) != set(weights):
            raise ValueError(
                f"The saved values belong to the mask {state['rule']}, the model trains {self.mask.rule.to_json()}; "
                "attach the mask that was saved."
            )
        if state["fingerprint"] != self.base_fingerprint:
            raise ValueError(
                "The saved values were trained on another base; load that base before attaching."
            )
        with torch.no_grad():
            for name, saved in state["values"].items():
                values = weights[name].values
                local(values).copy_(own_share(values, saved))
        self.flush()

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
        for weight in weights.values():
            if keep:
                weight.fresh_dense()
            else:
                weight.show(base=True)
            del weight.owner._parameters[weight.values_attribute]
        for module in self._modules:
            restore(module)
        for name, parameter in masked_candidates(self.model).items():
            parameter.requires_grad_(self._required_grad[name])
        for module, ignored in self._ignored_on_save:
            module._keys_to_ignore_on_save = ignored
        self._before_forward.remove()
        _attachments.discard(self)
        self._weights = {}

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
        self._check_what_changed()
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


def find_readers(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """For each parameter object, the modules and attributes that read it; tied weights have several."""
    readers: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                readers.setdefault(id(parameter), []).append((module, attribute))
    return readers


def _leave_values_out_of_checkpoints(model: nn.Module) -> list[tuple[Any, Any]]:
    """Name the values in ``_keys_to_ignore_on_save``, so that ``save_pretrained`` writes a plain checkpoint."""
    changed: list[tuple[Any, Any]] = []
    for module in model.modules():
        if hasattr(module, "save_pretrained"):
            ignored = getattr(module, "_keys_to_ignore_on_save", None)
            changed.append((module, ignored))
            values = {name for name, _ in module.named_parameters() if name.endswith(VALUES_SUFFIX)}
            module._keys_to_ignore_on_save = {*(ignored or ()), *values}  # type: ignore[assignment]
    return changed


def _write_after_optimizer_step(optimizer: Optimizer, *_: Any) -> None:
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for attachment in list(_attachments):
        if attachment._holds_any(stepped):
            attachment.flush()


_hook: Any = None


def _write_after_every_optimizer_step() -> None:
    global _hook
    if _hook is None:
        _hook = register_optimizer_step_post_hook(_write_after_optimizer_step)
