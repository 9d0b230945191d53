"""Apply tickets to a model and revert them, exactly, in any legal order, from any thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor, nn

from multiticket.mask import VALUES_SUFFIX, fingerprint, masked_candidates
from multiticket.mask.overlap import is_in
from multiticket.mask.quantised import descriptions, logical_shape, quantised_layers, why_unreadable
from multiticket.ticket.dense import gather, scatter_
from multiticket.ticket.overlay import OverlaidWeight, allow_saving, is_overlaid, refuse_saving
from multiticket.ticket.section import Section

Weights = dict[str, Tensor | OverlaidWeight]
"""By tensor name, what tickets read and change."""
Originals = list[dict[str, Tensor]]
"""For each section, by tensor name: what the weight held at the section's positions, (k,)."""


@dataclass(eq=False)
class _Entry:
    """One applied ticket. Does not refer to the model, so that a model is freed with its last user."""

    sections: Sequence[Section]
    originals: Originals


@dataclass
class _State:
    """What is applied to one model at the moment, oldest first, and the lock that guards its weights."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    applied: list[_Entry] = field(default_factory=list)


_states: weakref.WeakKeyDictionary[nn.Module, _State] = weakref.WeakKeyDictionary()
_states_lock = threading.Lock()


class Applied:
    """A ticket that is in a model's weights now. As a context manager, it reverts on exit."""

    def __init__(self, model: nn.Module, entry: _Entry) -> None:
        self.model = model
        self._entry = entry

    @property
    def active(self) -> bool:
        """Whether the ticket is still applied."""
        return self._entry in _state(self.model).applied

    def revert(self) -> None:
        """Write back what the weights held before, bit for bit.

        Raises ValueError where it was reverted before, or a ticket applied later shares positions with it.
        """
        state = _state(self.model)
        with state.lock:
            if self._entry not in state.applied:
                raise ValueError("This ticket has already been reverted.")
            at = state.applied.index(self._entry)
            later = state.applied[at + 1 :]
            if shared := _colliding(self._entry.sections, later):
                raise ValueError(
                    f"A ticket applied later shares {shared} positions with this one; revert the later one first."
                )
            weights = _weights(self.model, self._entry.sections)
            for section, originals in zip(self._entry.sections, self._entry.originals, strict=True):
                for name, original in originals.items():
                    scatter_(weights[name], section.positions[name], original)
            del state.applied[at]
            _take_off(self.model, weights, state.applied)

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self.revert()


def apply(model: nn.Module, sections: Sequence[Section], overlapping: bool) -> Applied:
    """See `Ticket.apply`."""
    state = _state(model)
    with state.lock:
        if not overlapping and (shared := _colliding(sections, state.applied)):
            raise ValueError(
                f"{shared} positions of this ticket belong to another applied ticket; revert that one first, or "
                "allow overlapping."
            )
        weights = _weights(model, sections)
        entry = _Entry(sections, _checked_originals(model, weights, sections, state.applied))
        _write(weights, entry)
        state.applied.append(entry)
        if any(isinstance(weight, OverlaidWeight) for weight in weights.values()):
            refuse_saving(model)
    return Applied(model, entry)


def merge(model: nn.Module, sections: Sequence[Section]) -> None:
    """See `Ticket.merge`."""
    state = _state(model)
    with state.lock:
        if shared := _colliding(sections, state.applied):
            raise ValueError(
                f"{shared} positions of this ticket belong to another applied ticket; revert that one before merging."
            )
        weights = _weights(model, sections)
        if any(isinstance(weight, OverlaidWeight) for weight in weights.values()):
            raise ValueError(
                "A ticket cannot be merged into quantised weights, which hold no other values than their own; use "
                "apply(model) wherever the base is loaded, or merge into the base that was quantised if the ticket was "
                "trained on that."
            )
        _write(weights, _Entry(sections, _checked_originals(model, weights, sections, state.applied)))


def check(model: nn.Module, sections: Sequence[Section]) -> None:
    """See `Ticket.check`."""
    state = _state(model)
    with state.lock:
        _checked_originals(model, _weights(model, sections), sections, state.applied)


def _state(model: nn.Module) -> _State:
    """Of the model itself, whatever wrapper it came in."""
    while list(model._modules) in (["module"], ["_orig_mod"]):
        (inner,) = model._modules.values()
        assert inner is not None
        model = inner
    with _states_lock:
        return _states.setdefault(model, _State())


def _weights(model: nn.Module, sections: Sequence[Section]) -> Weights:
    """The weights that the sections change, looked up by name. Raises ValueError where that cannot work."""
    layers = quantised_layers(model)
    weights: Weights = {}
    if any(name.endswith(VALUES_SUFFIX) for name, _ in model.named_parameters()):
        raise ValueError("The model has an attachment; call its detach() before applying a ticket.")
    parameters = masked_candidates(model)
    for section in sections:
        for name in section.mask.names:
            if name not in parameters:
                raise ValueError(f"This ticket is for another model: this one has no parameter {name!r}.")
            parameter, shape = parameters[name], section.mask.shape(name)
            here = logical_shape(parameter)
            if hasattr(parameter, "placements"):
                raise ValueError(f"{name} is sharded over ranks; apply tickets before fully_shard.")
            if here != shape:
                raise ValueError(
                    f"This ticket is for another model: {name} has shape {here} here, {shape} there."
                )
            if parameter.is_meta:
                raise ValueError(f"{name} is on the meta device and has no values; load the weights first.")
            layer = layers.get(id(parameter))
            if layer is not None and not is_overlaid(layer) and (why := why_unreadable(layer, parameter)):
                raise ValueError(f"No ticket can be applied to the quantised weight {name}: {why}.")
            weights[name] = parameter.detach() if layer is None else OverlaidWeight(layer)
    return weights


def _take_off(model: nn.Module, weights: Weights, applied: list[_Entry]) -> None:
    """Give quantised layers their own forward back where no ticket is applied any more."""
    taken = {name for entry in applied for section in entry.sections for name in section.mask.names}
    for name, weight in weights.items():
        if isinstance(weight, OverlaidWeight) and name not in taken:
            weight.clear()
    if not any(is_overlaid(layer) for layer in model.modules()):
        allow_saving(model)


def _checked_originals(
    model: nn.Module, weights: Weights, sections: Sequence[Section], applied: list[_Entry]
) -> Originals:
    """What the weights hold at the sections' positions, provided that it is the base of each."""
    originals = [
        {name: gather(weights[name], flat) for name, flat in section.positions.items()}
        for section in sections
    ]
    quantised = descriptions(masked_candidates(model))
    for section, found in zip(sections, originals, strict=True):
        now = fingerprint(section.mask, found.__getitem__, quantised)
        if now == section.fingerprint:
            continue
        # Where applied tickets changed the same positions, the base is what they saved.
        base = {name: _below(name, section.positions[name], found[name], applied) for name in found}
        if not applied or fingerprint(section.mask, base.__getitem__, quantised) != section.fingerprint:
            raise ValueError(
                "This ticket belongs to another base: the model's weights at its positions are not those it was "
                f"trained from (fingerprint {section.fingerprint[:12]}, found {now[:12]}); load that base."
            )
    return originals


def _below(name: str, flat: Tensor, values: Tensor, applied: list[_Entry]) -> Tensor:
    """``values`` (k,) at ``flat`` (k,) as they were before any of the applied tickets."""
    values = values.clone()
    for entry in reversed(applied):
        for section, originals in zip(entry.sections, entry.originals, strict=True):
            if name in originals:
                theirs = section.positions[name]
                shared = is_in(flat, theirs)
                at = torch.searchsorted(theirs, flat[shared])
                original = originals[name].to(values)
                values[shared.to(values.device)] = original[at.to(values.device)]
    return values


def _write(weights: Weights, entry: _Entry) -> None:
    """All values, section after section; where that fails on the way, what was there before."""
    try:
        for section in entry.sections:
            for name, flat in section.positions.items():
                scatter_(weights[name], flat, section.values[name])
    except BaseException:
        for section, originals in zip(entry.sections, entry.originals, strict=True):
            for name, original in originals.items():
                scatter_(weights[name], section.positions[name], original)
        raise


def _colliding(sections: Sequence[Section], entries: Sequence[_Entry]) -> int:
    """How many of the sections' positions the entries take too."""
    total = 0
    for section in sections:
        for name, flat in section.positions.items():
            theirs = [s.positions[name] for e in entries for s in e.sections if name in s.positions]
            if theirs:
                hit = torch.stack([is_in(flat, other) for other in theirs]).any(0)
                total += int(hit.sum())
    return total
