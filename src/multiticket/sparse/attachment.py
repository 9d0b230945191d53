"""What every attachment is, whichever way its gradients come."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.mask import Mask
from multiticket.mask.names import VALUES_SUFFIX, masked_candidates
from multiticket.sparse.held import modules_in_containers
from multiticket.sparse.planned import planning
from multiticket.sparse.watching import unwatch, watch
from multiticket.ticket import Ticket
from multiticket.ticket.base_name import named_base


class Attachment(ABC):
    """A model in which only a mask's values train. Made by ``attach``.

    ``fully_shard`` (FSDP2) may follow where ``path`` is ``direct``. Then ``flush``, ``state_dict`` and
    ``load_state_dict`` are collective: every rank must call them. ``ticket`` and ``dense_values`` are not, so that one
    rank may save the ticket.
    """

    path: str
    """``direct`` (k gradients are computed, and nothing else) or ``hooks`` (torch's dense gradient of one weight at a
    time, gathered and dropped)."""
    model: nn.Module
    mask: Mask
    planned: bool
    """Whether the model has no weights, and this is only to tell what it would keep."""
    base_fingerprint: str
    """Hash of the base's values at the mask's positions; a ticket made here can be applied to that base only."""

    def __init__(self, model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter]) -> None:
        self.model = model
        self.mask = mask
        self.planned = planning()
        self._required_grad = {name: parameter.requires_grad for name, parameter in parameters.items()}
        self._names_of_frozen = {id(parameter): name for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.requires_grad_(False)

    def __repr__(self) -> str:
        rule = self.mask.rule
        return (
            f"Attachment({type(self.model).__name__}, {self.nnz:,} of {self.mask.numel:,} values "
            f"({100 * self.mask.density:.3g} %), method={rule.method!r}, seed={rule.seed}, path={self.path!r})"
        )

    def required_grad(self, parameter: Tensor) -> bool:
        """Whether a parameter of the model took a gradient before the mask was attached."""
        name = self._names_of_frozen.get(id(parameter))
        return parameter.requires_grad if name is None else self._required_grad[name]

    def _frozen_parameters(self) -> dict[str, nn.Parameter]:
        """What attaching froze, as far as the model still has it, under the names of then: wrappers rename."""
        named = {n: p for n, p in masked_candidates(self.model).items() if n in self._required_grad}
        known = {id(p): p for p in self.model.parameters()}
        return named | {name: known[key] for key, name in self._names_of_frozen.items() if key in known}

    def _watch(self) -> None:
        """Once the values are registered: keep them out of checkpoints, and write them after optimiser steps."""
        self._ignored_on_save = _leave_values_out_of_checkpoints(self.model)
        watch(self)

    def _unwatch(self) -> None:
        for module, ignored in self._ignored_on_save:
            module._keys_to_ignore_on_save = ignored
        unwatch(self)

    @property
    def nnz(self) -> int:
        """Number of trained values."""
        return self.mask.nnz

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The values (k,) of each masked tensor, under the dense weight's name. An optimiser may train these."""

    @abstractmethod
    def parameters(self) -> Iterator[nn.Parameter]:
        """What an optimiser trains: all values, fp32 (fp64 over fp64 weights), in as few tensors as the path allows."""

    @abstractmethod
    def gradient_methods(self) -> dict[str, str]:
        """How each tensor's gradient is computed, by name; of a tied weight, in each layer that has it, with ``+``."""

    @abstractmethod
    def dense_dtype(self, name: str) -> torch.dtype:
        """The dtype of the dense weight ``name``, to which its values are rounded when they are written."""

    @abstractmethod
    def dense_values(self, name: str) -> Tensor:
        """What the dense weight ``name`` holds at the mask's positions (k,), in its own dtype."""

    @abstractmethod
    def flush(self) -> None:
        """Write all values into the dense weights now; optimiser steps and forward passes do it by themselves."""

    @abstractmethod
    def disabled(self) -> AbstractContextManager[None]:
        """The base model, for a reference policy: its values are in the weights, and no gradient is recorded."""

    def ticket(self, **provenance: Any) -> Ticket:
        """What was learned, as a ticket: the mask's rule and the values in the dtype of the weights.

        Args:
            provenance: anything JSON can hold, kept in the ticket (task, arm, steps, scores, ...). Without ``model``, a
                base that is shipped or on the hub is named as transformers loaded it.
        """
        if "model" not in provenance and "revision" not in provenance:
            provenance = {**named_base(self.model), **provenance}
        return Ticket.from_attachment(self, **provenance)

    def state_dict(self) -> dict[str, Any]:
        """The values (k,) in fp32 by tensor name, the mask's rule and the base's fingerprint: enough to resume.

        The same on both paths, so that a run begun on one may go on with the other.
        """
        values = {name: content.clone() for name, content in self._whole_values().items()}
        return {"values": values, "rule": self.mask.rule.to_json(), "fingerprint": self.base_fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``, taken on this base with this mask.

        Raises:
            ValueError: the state is of another mask or another base; nothing is changed then.
        """
        if state["rule"] != self.mask.rule.to_json() or set(state["values"]) != set(self.mask.names):
            raise ValueError(
                f"The saved values belong to the mask {state['rule']}, the model trains {self.mask.rule.to_json()}; "
                "attach the mask that was saved."
            )
        if state["fingerprint"] != self.base_fingerprint:
            raise ValueError(
                "The saved values were trained on another base; load that base before attaching."
            )
        with torch.no_grad():
            self._set_values(state["values"])
        self.flush()

    @abstractmethod
    def detach(self, keep: bool = True) -> None:
        """Give the model back as it was: classes, parameters, ``requires_grad``.

        Args:
            keep: True leaves the trained weights in place; False puts the base back, bit for bit.
        """

    @abstractmethod
    def values_by_dtype(self) -> Iterator[tuple[Tensor, torch.dtype]]:
        """All values in as few tensors as may be, each with the dtype of the weights they are rounded to."""

    @abstractmethod
    def rounded_as(self, parameter: Tensor) -> list[tuple[slice, torch.dtype]]:
        """Pieces of a parameter of values, each with the dtype of the weights it is rounded to; none of another's."""

    @abstractmethod
    def _whole_values(self) -> dict[str, Tensor]:
        """The values (k,) by name, whole on every rank."""

    @abstractmethod
    def _set_values(self, values: dict[str, Tensor]) -> None:
        """Take ``values`` (k,) by name."""

    @abstractmethod
    def _holds_any(self, parameters: set[int]) -> bool:
        """Whether an optimiser over these parameters, by ``id``, trains the attachment."""

    @abstractmethod
    def _before_step(self, parameters: set[int]) -> None:
        """An optimiser over these parameters, by ``id``, is about to step."""

    @abstractmethod
    def _after_step(self, parameters: set[int]) -> None:
        """An optimiser over these parameters, by ``id``, has stepped: write what it changed, and touch nothing else.

        A backward pass may be under way, with one optimiser a parameter.
        """


def find_readers(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """For each parameter object, the modules and attributes that read it; tied weights have several.

    Modules that others keep in plain lists read too, where they share a parameter that is registered.
    """
    readers: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                readers.setdefault(id(parameter), []).append((module, attribute))
    for module in modules_in_containers(model):
        for attribute, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in readers:
                readers[id(parameter)].append((module, attribute))
    return readers


def warn_frozen() -> None:
    """Say that all of an attachment's values were frozen: PEFT does so to everything that is not its own."""
    warnings.warn(
        "The ticket's values do not require gradients any more, so they do not train (PEFT freezes all parameters but "
        "its own, for one); call requires_grad_(True) on attachment.parameters() to train them.",
        stacklevel=3,
    )


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
