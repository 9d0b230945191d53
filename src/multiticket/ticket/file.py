"""Write and read ticket files. `docs/ticket-format.md` describes them byte by byte.

The reader trusts nothing: every size is checked against the file's own before anything is allocated, and a checksum
over the whole file is verified before anything is returned.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from multiticket.ticket import delta
from multiticket.ticket.atomic import replacing
from multiticket.ticket.header import FORMAT, Described, TensorEntry, described, loads, parse_header
from multiticket.ticket.section import FLOATS, Section

MAX_HEADER = 2**26
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_NO_CHECKSUM = "0" * 64
_CHUNK = 2**22
_DTYPE_NAMES = {dtype: name for name, dtype in FLOATS.items()}


def write(path: str | os.PathLike[str], sections: Sequence[Section], provenance: dict[str, Any]) -> None:
    """The whole file or none of it."""
    metadata = {
        "format": FORMAT,
        "version": "1",
        "checksum": _NO_CHECKSUM,
        "sections": _json([_describe(section) for section in sections]),
        "provenance": _json(provenance),
    }
    blobs = {key: blob for i, section in enumerate(sections) for key, blob in _blobs(i, section).items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for key, (dtype, blob) in blobs.items():
        count = blob.nbytes // (FLOATS[dtype].itemsize if dtype in FLOATS else 1)
        header[key] = {"dtype": dtype, "shape": [count], "data_offsets": [end, end + blob.nbytes]}
        end += blob.nbytes
    head = _padded(header)
    digest = hashlib.sha256(struct.pack("<Q", len(head)) + head)
    for _, blob in blobs.values():
        digest.update(blob.data)
    metadata["checksum"] = digest.hexdigest()
    head = _padded(header)
    if len(head) > MAX_HEADER:
        raise ValueError("The ticket's provenance is too large to save; leave out what is not needed.")
    described(*_sections_and_tensors(head, end))  # what could not be read back is not written
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, blob in blobs.values():
            file.write(blob.data)


def read(path: str | os.PathLike[str]) -> tuple[list[Section], dict[str, Any]]:
    """Sections and provenance of the file at ``path``.

    Raises ValueError, in one sentence, where the file is not exactly what `write` would have written, and OSError
    where there is no file to read.
    """
    path = Path(path)
    try:
        return _read(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    except (RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} cannot be used: it is not a ticket that fits this machine.") from error


def _read(path: Path) -> tuple[list[Section], dict[str, Any]]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file.")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = _read_head(file, size)
        metadata, tensors = parse_header(head, size - 8 - len(head))
        planned = described(metadata["sections"], tensors)
        data = _read_data(file, size - 8 - len(head), head, metadata["checksum"])
    provenance = loads(metadata["provenance"])
    if not isinstance(provenance, dict):
        raise ValueError("its provenance is not a JSON object.")
    return [_section(plan, tensors, data) for plan in planned], provenance


def _read_head(file: BinaryIO, size: int) -> bytes:
    start = file.read(8)
    if len(start) < 8:
        raise ValueError("it is too short to be a ticket.")
    (length,) = struct.unpack("<Q", start)
    if length > min(size - 8, MAX_HEADER):
        raise ValueError("it is truncated, or not a ticket.")
    head = file.read(length)
    if len(head) < length or not head.startswith(b"{"):
        raise ValueError("it is truncated, or not a ticket.")
    return head


def _read_data(file: BinaryIO, length: int, head: bytes, checksum: str) -> np.ndarray:
    """Everything behind the header, once its checksum is seen to be right."""
    if not _CHECKSUM.fullmatch(checksum) or head.count(checksum.encode()) != 1:
        raise ValueError("it has no valid checksum.")
    digest = hashlib.sha256(struct.pack("<Q", len(head)))
    digest.update(head.replace(checksum.encode(), _NO_CHECKSUM.encode()))
    data = np.empty(length, dtype=np.uint8)
    for start in range(0, length, _CHUNK):
        piece = data[start : start + _CHUNK].data
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            raise ValueError("it was truncated while being read.")
        digest.update(piece)
    if digest.hexdigest() != checksum:
        raise ValueError("its checksum is wrong: the file was damaged or changed; download it again.")
    return data


def _section(plan: Described, tensors: dict[str, TensorEntry], data: np.ndarray) -> Section:
    chosen = None
    if plan.positions_key is not None:
        begin, end = tensors[plan.positions_key].offsets
        chosen = delta.decode(data[begin:end], [entry.count for entry in plan.entries if entry.count])
    mask = plan.mask(chosen)
    taken = {key: tensors[key].offsets[0] for key in plan.value_keys.values()}
    values = {}
    for entry in plan.entries:
        if entry.count:
            assert entry.dtype is not None
            key = plan.value_keys[entry.dtype]
            begin = taken[key]
            taken[key] = end = begin + entry.count * FLOATS[entry.dtype].itemsize
            # A copy, for its own alignment: the file's bytes may lie at an odd address.
            values[entry.name] = torch.from_numpy(data[begin:end].copy()).view(FLOATS[entry.dtype])
    return Section(mask, values, plan.fingerprint)


def _sections_and_tensors(head: bytes, data_bytes: int) -> tuple[str, dict[str, TensorEntry]]:
    metadata, tensors = parse_header(head, data_bytes)
    return metadata["sections"], tensors


def _describe(section: Section) -> dict[str, Any]:
    mask = section.mask
    return {
        "rule": json.loads(mask.rule.to_json()),
        "fingerprint": section.fingerprint,
        "tensors": [
            [
                name,
                list(shape),
                mask.count(name),
                _DTYPE_NAMES[section.values[name].dtype] if mask.count(name) else None,
            ]
            for name, shape in mask.shapes.items()
        ],
    }


def _blobs(number: int, section: Section) -> dict[str, tuple[str, np.ndarray]]:
    """The section's data tensors, as bytes, by their key in the file: values by dtype, then positions."""
    by_dtype: dict[str, list[Tensor]] = {}
    for values in section.values.values():
        by_dtype.setdefault(_DTYPE_NAMES[values.dtype], []).append(values)
    blobs = {
        f"{number}.values.{dtype}": (dtype, torch.cat([v.view(torch.uint8) for v in by_dtype[dtype]]).numpy())
        for dtype in FLOATS
        if dtype in by_dtype
    }
    if not section.mask.follows_rule:
        flats = [delta.encode(section.mask.indices(name).numpy()) for name in section.mask.names]
        blobs[f"{number}.positions"] = ("U8", np.concatenate(flats))
    return blobs


def _padded(header: dict[str, Any]) -> bytes:
    head = _json(header).encode("ascii")
    return head + b" " * (-len(head) % 8)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
