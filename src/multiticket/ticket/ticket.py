"""A ticket: a mask with trained values, bound to a base model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from multiticket import __version__
from multiticket.mask import Mask, union
from multiticket.ticket import apply, file
from multiticket.ticket.apply import Applied
from multiticket.ticket.section import Section


class TrainedValues(Protocol):
    """What a ticket can be taken from: an attachment, or anything else with a mask and trained values."""

    mask: Mask

    @property
    def base_fingerprint(self) -> str: ...

    def dense_values(self, name: str) -> Tensor: ...


class Ticket:
    """Values for a mask's positions, with the fingerprint of the base they belong to and where they came from.

    A ticket made by `compose` has several sections, one for each ticket in it, applied in order.
    """

    def __init__(
        self,
        mask: Mask,
        values: Mapping[str, Tensor],
        fingerprint: str,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """``values[name]``: (mask.count(name),), ordered as ``mask.indices(name)``; copied to the CPU.

        ``provenance`` is anything JSON can hold. Raises ValueError where the parts do not fit together.
        """
        self._sections: tuple[Section, ...] = (Section(mask, values, fingerprint),)
        self.provenance = _plain(provenance or {})

    @classmethod
    def from_sections(
        cls, sections: Sequence[Section], provenance: Mapping[str, Any] | None = None
    ) -> Ticket:
        """A ticket of one or more sections, applied in order."""
        if not sections:
            raise ValueError("A ticket needs at least one mask with values.")
        ticket = cls.__new__(cls)
        ticket._sections = tuple(sections)
        ticket.provenance = _plain(provenance or {})
        return ticket

    @classmethod
    def from_attachment(cls, attachment: TrainedValues, **provenance: Any) -> Ticket:
        """What an attachment has learned so far, in the dtype of the weights."""
        mask = attachment.mask
        values = {name: attachment.dense_values(name) for name in mask.names}
        versions = {"multiticket": __version__, "torch": torch.__version__}
        return cls(mask, values, attachment.base_fingerprint, {"versions": versions, **provenance})

    @classmethod
    def load(cls, path: str | os.PathLike[str], revision: str | None = None) -> Ticket:
        """Read what `save` wrote, from a file, or from the hub what `push_to_hub` put there; never runs code.

        Args:
            path: a file, or `owner/name` (also `owner/name@revision`) where no such file is.
            revision: a commit, branch or tag of the hub's repository.

        Raises:
            ValueError: with one sentence, for anything else.
        """
        from multiticket.ticket import hub

        found = hub.repository(path)
        if found is not None:
            path = hub.download(found[0], revision or found[1])
        elif revision is not None:
            raise ValueError(f"{path} is no repository of the hub, so it has no revision {revision}.")
        sections, provenance = file.read(path)
        return cls.from_sections(sections, provenance)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file (docs/ticket-format.md), whole or not at all; equal tickets, equal bytes."""
        file.write(path, self._sections, self.provenance)

    def push_to_hub(
        self,
        repo: str,
        base: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        message: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the ticket and a model card to the hub's repository `repo`, made where it is missing.

        Args:
            base: the base's name on the hub; None: the one that the provenance names.
            private: of a repository that is made: whether only its owner sees it; None: the owner's usual choice.
            revision: a branch; None: main.
            message, license: of the commit, and of the values.

        Returns:
            the commit's address.

        Raises:
            ValueError: the base is a local folder and not named, or the hub refuses.
        """
        from multiticket.ticket import hub

        return hub.push(self, repo, base, private, revision, message, license)

    @property
    def sections(self) -> tuple[Section, ...]:
        """One, or those of a composed ticket in the order in which they are applied."""
        return self._sections

    @property
    def mask(self) -> Mask:
        """The positions; of a composed ticket, those of all sections together."""
        masks = [section.mask for section in self._sections]
        return masks[0] if len(masks) == 1 else union(*masks)

    @property
    def told(self) -> dict[str, Any]:
        """The provenance; of a composed ticket, what those of its parts say alike."""
        parts = self.provenance.get("composed_of")
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts) or not parts:
            return self.provenance
        alike = {k: v for k, v in parts[0].items() if all(k in part and part[k] == v for part in parts)}
        return {**alike, **self.provenance}

    @property
    def fingerprint(self) -> str:
        """The base's fingerprint at the (first section's) positions."""
        return self._sections[0].fingerprint

    @property
    def nnz(self) -> int:
        """Number of values in the file."""
        return sum(section.mask.nnz for section in self._sections)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The values' dtypes, most frequent first."""
        count: dict[torch.dtype, int] = {}
        for section in self._sections:
            for values in section.values.values():
                count[values.dtype] = count.get(values.dtype, 0) + len(values)
        return tuple(sorted(count, key=lambda dtype: -count[dtype]))

    def check(self, model: torch.nn.Module) -> None:
        """Raises ValueError unless ``model`` is the base: same names, shapes, and values at the masked positions.

        A bf16 base loaded as fp32 is the same base. Tickets applied to the model at the moment are looked through.
        """
        apply.check(model, self._sections)

    def apply(self, model: torch.nn.Module, overlapping: bool = False) -> Applied:
        """Write the values into the model's weights, and keep what was there for `Applied.revert`.

        Values are written as they are; where a weight has another dtype they are rounded to it. Nothing is written
        unless everything can be. Thread-safe: of two threads that apply or revert at once, one waits.

        Args:
            model: the base, on any device, perhaps with other tickets applied.
            overlapping: allow positions that a ticket applied earlier changed too; this one's values win.

        Raises:
            ValueError: another base, an attached model, or (unless allowed) positions taken by an applied ticket.
        """
        return apply.apply(model, self._sections, overlapping)

    @contextmanager
    def applied(self, model: torch.nn.Module, overlapping: bool = False) -> Iterator[Applied]:
        """`apply` for the length of a ``with`` block; the exit reverts bit for bit."""
        with self.apply(model, overlapping) as applied:
            yield applied

    def merge(self, model: torch.nn.Module) -> None:
        """Write the values for good. Raises ValueError as `apply` does, also for overlap with an applied ticket."""
        apply.merge(model, self._sections)

    def __repr__(self) -> str:
        rules = " + ".join(section.mask.rule.method for section in self._sections)
        return f"Ticket({rules}, nnz={self.nnz}, base={self.fingerprint[:12]})"


def _plain(provenance: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            "A ticket's provenance must be plain JSON: strings, finite numbers, lists, dicts."
        ) from error
