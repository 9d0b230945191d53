"""Write a base with a ticket in it as a plain checkpoint, file by file."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiticket.mask import fingerprint
from multiticket.ticket.cast import cast_file, tell_dtype
from multiticket.ticket.checkpoint import INDEX, Checkpoint, StoredTensor
from multiticket.ticket.dense import gather, scatter_
from multiticket.ticket.section import Section
from multiticket.ticket.ticket import Ticket

OF_THE_BASE_ALONE = re.compile(
    r"readme.*|.*\.md|.*\.(png|jpe?g|svg|gif|pdf)|(base|trainer_state)\.json|.*(scores?|results?|evals?)\.json",
    re.IGNORECASE,
)
"""Names of files that tell of the base what is not so of a merged model: its page, pictures and scores."""
LICENCES = re.compile(r"(licen[cs]e|notice|use_policy).*", re.IGNORECASE)
OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".safetensors"}


@dataclass
class Rounding:
    """What became of a ticket's values in the dtype of the weights that they were written into."""

    moved: int = 0
    """Values that differ from the base's."""
    changed: int = 0
    """Weights that differ from the base's: what rounding left of those."""
    update: float = 0.0
    """Squared L2 norm of values minus base."""
    error: float = 0.0
    """Squared L2 norm of weights minus values."""

    def add(self, base: Tensor, values: Tensor, dtype: torch.dtype) -> None:
        """``base`` and ``values`` (k,) at some positions; ``dtype``: of the weights that are written."""
        kept = values.to(dtype).double()
        before, wanted, values = base.double(), base.to(dtype).double(), values.double()
        self.moved += int((values != before).sum())
        self.changed += int((kept != wanted).sum())
        self.update += float((values - before).square().sum())
        self.error += float((kept - values).square().sum())

    @property
    def share(self) -> float:
        """Length of the error in lengths of the update."""
        return math.sqrt(self.error / self.update) if self.update else 0.0


def merge_checkpoint(
    base: str | os.PathLike[str],
    ticket: Ticket,
    output: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Copy the checkpoint folder ``base`` to ``output`` with the ticket's values in it.

    Files are copied, and the values written into the copies through memory maps: memory is O(values), whatever the
    model's size. Configuration, tokenizer and licences come along; weights in other formats, which would be the base's,
    and the base's page and scores do not. ``output`` appears when it is complete.

    Args:
        dtype: of the merged weights, all of them; None: as the base stores them. A value is rounded to its weight's.

    Returns:
        counts of ``values``, ``tensors`` and ``files``; ``dtypes`` of the weights; and what rounding did: values that
        ``moved`` from the base's, weights that ``changed``, and ``rounding_error``, the length of what was rounded off
        in lengths of the update.

    Raises ValueError for another base, or an ``output`` that exists.
    """
    checkpoint, output = Checkpoint(base), Path(output)
    if output.exists():
        raise ValueError(f"{output} already exists; choose another output folder.")
    places = [_places(section, checkpoint) for section in ticket.sections]
    check_checkpoint(checkpoint, ticket)
    output.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        copied = _copy(checkpoint, building, dtype)
        written = Checkpoint(building)
        rounding, dtypes = Rounding(), set()
        for section, found in zip(ticket.sections, places, strict=True):
            for name, stored in _places(section, written).items():
                flat, values = section.positions[name], section.values[name]
                rounding.add(gather(found[name][0].mapped(), flat), values, stored[0].dtype)
                dtypes.add(str(stored[0].dtype).removeprefix("torch."))
                for place in stored:
                    scatter_(place.mapped(writable=True), flat, values)
        os.chmod(building, 0o755)
        os.replace(building, output)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    tensors = {name for found in places for name in found}
    return {
        "output": str(output),
        "values": ticket.nnz,
        "tensors": len(tensors),
        "files": copied,
        "dtypes": sorted(dtypes),
        "moved": rounding.moved,
        "changed": rounding.changed,
        "rounding_error": rounding.share,
    }


def check_checkpoint(checkpoint: Checkpoint, ticket: Ticket) -> None:
    """Raises ValueError unless the checkpoint is the ticket's base, as far as the ticket's positions tell."""
    for section in ticket.sections:
        places = _places(section, checkpoint)
        values = {name: gather(places[name][0].mapped(), flat) for name, flat in section.positions.items()}
        found = fingerprint(section.mask, values.__getitem__)
        if found != section.fingerprint:
            raise ValueError(
                f"This ticket belongs to another base than {checkpoint.folder}: the weights at its positions are not "
                f"those it was trained from (fingerprint {section.fingerprint[:12]}, found {found[:12]}); name it."
            )


def _places(section: Section, checkpoint: Checkpoint) -> dict[str, list[StoredTensor]]:
    return {name: checkpoint.find(name, section.mask.shape(name)) for name in section.mask.names}


def _copy(checkpoint: Checkpoint, target: Path, dtype: torch.dtype | None) -> int:
    copied = 0
    for path in sorted(checkpoint.folder.iterdir()):
        told = OF_THE_BASE_ALONE.fullmatch(path.name) and not LICENCES.fullmatch(path.name)
        if path.is_file() and not told and (path in checkpoint.files or path.suffix not in OTHER_WEIGHTS):
            if dtype is not None and path in checkpoint.files:
                cast_file(path, target / path.name, dtype)
            else:
                shutil.copyfile(path, target / path.name)
            copied += 1
    if dtype is not None:
        tell_dtype(target, dtype, INDEX)
    return copied
