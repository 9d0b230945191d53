"""Write a base with a ticket in it as a plain checkpoint, file by file."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from multiticket.mask import fingerprint
from multiticket.ticket.checkpoint import Checkpoint, StoredTensor
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


def merge_checkpoint(
    base: str | os.PathLike[str], ticket: Ticket, output: str | os.PathLike[str]
) -> dict[str, int | str]:
    """Copy the checkpoint folder ``base`` to ``output`` with the ticket's values in it.

    Files are copied, and the values written into the copies through memory maps: memory is O(values), whatever the
    model's size. Configuration, tokenizer and licences come along; weights in other formats, which would be the base's,
    and the base's page and scores do not. ``output`` appears when it is complete. Returns counts of values, tensors
    and files.

    Raises ValueError for another base, or an ``output`` that exists.
    """
    checkpoint, output = Checkpoint(base), Path(output)
    if output.exists():
        raise ValueError(f"{output} exists already; choose another output folder.")
    places = [_places(section, checkpoint) for section in ticket.sections]
    check_checkpoint(checkpoint, ticket)
    output.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        copied = _copy(checkpoint, building)
        for section, found in zip(ticket.sections, places, strict=True):
            for name, stored in found.items():
                for place in stored:
                    scatter_(
                        place.moved(building).mapped(writable=True),
                        section.positions[name],
                        section.values[name],
                    )
        os.chmod(building, 0o755)
        os.replace(building, output)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    tensors = {name for found in places for name in found}
    return {"output": str(output), "values": ticket.nnz, "tensors": len(tensors), "files": copied}


def check_checkpoint(checkpoint: Checkpoint, ticket: Ticket) -> None:
    """Raises ValueError unless the checkpoint is the ticket's base."""
    for section in ticket.sections:
        places = _places(section, checkpoint)
        values = {name: gather(places[name][0].mapped(), flat) for name, flat in section.positions.items()}
        found = fingerprint(section.mask, values.__getitem__)
        if found != section.fingerprint:
            raise ValueError(
                f"This ticket belongs to another base than {checkpoint.folder} (fingerprint "
                f"{section.fingerprint[:12]}, found {found[:12]}); name the base it was trained on."
            )


def _places(section: Section, checkpoint: Checkpoint) -> dict[str, list[StoredTensor]]:
    return {name: checkpoint.find(name, section.mask.shape(name)) for name in section.mask.names}


def _copy(checkpoint: Checkpoint, target: Path) -> int:
    copied = 0
    for path in sorted(checkpoint.folder.iterdir()):
        told = OF_THE_BASE_ALONE.fullmatch(path.name) and not LICENCES.fullmatch(path.name)
        if path.is_file() and not told and (path in checkpoint.files or path.suffix not in OTHER_WEIGHTS):
            shutil.copyfile(path, target / path.name)
            copied += 1
    return copied
