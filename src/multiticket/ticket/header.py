"""The header of a ticket file: what it may say, and whether it is consistent, before any data is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from multiticket.mask import Mask, MaskRule
from multiticket.mask.positions import stored
from multiticket.mask.random import MAX_NUMEL
from multiticket.mask.selectors import SELECTORS
from multiticket.ticket.section import FLOATS

FORMAT = "multiticket.ticket"
_METADATA = {"format", "version", "checksum", "sections", "provenance"}
_ITEM_BYTES = {**{name: dtype.itemsize for name, dtype in FLOATS.items()}, "U8": 1}


@dataclass(frozen=True)
class TensorEntry:
    """One data tensor of the file: its safetensors dtype, number of items, and bytes begin and end."""

    dtype: str
    count: int
    offsets: tuple[int, int]


@dataclass(frozen=True)
class MaskedEntry:
    """One tensor of the model: name, shape, number of trained values and their dtype (None without any)."""

    name: str
    shape: tuple[int, ...]
    count: int
    dtype: str | None


@dataclass(frozen=True)
class Described:
    """What the header says of one section."""

    rule: MaskRule
    fingerprint: str
    entries: list[MaskedEntry]
    value_keys: dict[str, str]
    """The data tensor that holds the values of each dtype."""
    positions_key: str | None
    """The data tensor that holds the positions, where the rule does not give them."""

    def mask(self, chosen: list[np.ndarray] | None) -> Mask:
        """The section's mask. ``chosen``: stored positions of each tensor that has any, in order."""
        shapes = {entry.name: entry.shape for entry in self.entries}
        if chosen is None:
            mask = Mask.from_shapes(shapes, self.rule)
            if mask.shapes != shapes or any(mask.count(entry.name) != entry.count for entry in self.entries):
                raise ValueError("its rule gives other tensors or counts than it declares.")
            return mask
        flats = {}
        for entry, flat in zip((e for e in self.entries if e.count), chosen, strict=True):
            # A sum of gaps that overflows 2**63 passes through negative numbers first.
            if flat.min() < 0 or flat.max() >= math.prod(entry.shape):
                raise ValueError(f"a stored position lies outside {entry.name!r}.")
            flats[entry.name] = stored(torch.from_numpy(flat))
        return Mask(self.rule, shapes, flats)


def parse_header(head: bytes, data_bytes: int) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Metadata and data tensors. The tensors fill exactly ``data_bytes``, without a hole or an overlap."""
    header = loads(head)
    if not isinstance(header, dict):
        raise ValueError("it is not a ticket.")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError("it is not a ticket (a plain checkpoint, perhaps).")
    if metadata.get("version") != "1":
        raise ValueError("it has another format version; use the release of multiticket that wrote it.")
    if set(metadata) != _METADATA or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its header does not have the fields of a ticket.")
    tensors = {key: _tensor_entry(entry) for key, entry in header.items()}
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: entry.offsets):
        if entry.offsets[0] != end:
            raise ValueError("its data has a hole or an overlap.")
        end = entry.offsets[1]
    if end != data_bytes:
        raise ValueError("it is truncated, or has data after its end.")
    return metadata, tensors


def described(text: str, tensors: dict[str, TensorEntry]) -> list[Described]:
    """The sections, in order, each consistent with the data tensors and with its own rule."""
    sections = loads(text)
    if not isinstance(sections, list) or not sections:
        raise ValueError("it has no values.")
    plans = [_described(number, section, tensors) for number, section in enumerate(sections)]
    used = [
        key for plan in plans for key in (*plan.value_keys.values(), plan.positions_key) if key is not None
    ]
    if sorted(used) != sorted(tensors):
        raise ValueError("it contains data that no section describes.")
    return plans


def _described(number: int, section: Any, tensors: dict[str, TensorEntry]) -> Described:
    if not isinstance(section, dict) or set(section) != {"rule", "fingerprint", "tensors"}:
        raise ValueError("a section does not have the fields of one.")
    rule = MaskRule.from_json(json.dumps(section["rule"]))
    if not isinstance(section["fingerprint"], str) or not isinstance(section["tensors"], list):
        raise ValueError("a section does not have the fields of one.")
    entries = [_masked_entry(entry) for entry in section["tensors"]]
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("a section names a tensor twice.")
    sums: dict[str, int] = {}
    for entry in entries:
        if entry.dtype is not None:
            sums[entry.dtype] = sums.get(entry.dtype, 0) + entry.count
    value_keys = {dtype: f"{number}.values.{dtype}" for dtype in sums}
    for dtype, count in sums.items():
        _expect(tensors, value_keys[dtype], dtype, count)
    positions_key = None
    if rule.method not in SELECTORS:
        positions_key = f"{number}.positions"
        _expect(tensors, positions_key, "U8", None)
        if tensors[positions_key].count < sum(sums.values()):
            raise ValueError("it stores fewer positions than values.")
    return Described(rule, section["fingerprint"], entries, value_keys, positions_key)


def _expect(tensors: dict[str, TensorEntry], key: str, dtype: str, count: int | None) -> None:
    entry = tensors.get(key)
    if entry is None or entry.dtype != dtype or (count is not None and entry.count != count):
        raise ValueError(f"its data lacks {key}, or has another dtype or length than its sections say.")


def _tensor_entry(entry: Any) -> TensorEntry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("a data tensor is not described as safetensors asks.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError("a data tensor has a dtype that a ticket cannot have.")
    if (
        not _whole(shape, 1)
        or not _whole(offsets, 2)
        or offsets[1] - offsets[0] != shape[0] * _ITEM_BYTES[dtype]
    ):
        raise ValueError("a data tensor's length does not fit its place.")
    return TensorEntry(dtype, shape[0], (offsets[0], offsets[1]))


def _masked_entry(entry: Any) -> MaskedEntry:
    if not isinstance(entry, list) or len(entry) != 4:
        raise ValueError("a masked tensor is not described by name, shape, count and dtype.")
    name, shape, count, dtype = entry
    if not isinstance(name, str) or not name.isprintable():
        raise ValueError("a masked tensor's name is not printable text.")
    if not isinstance(shape, list) or len(shape) > 16 or not _whole(shape, len(shape)):
        raise ValueError(f"the shape of {name!r} is not a list of whole numbers.")
    if not _whole([count], 1) or not count <= math.prod(shape) < MAX_NUMEL:
        raise ValueError(f"the number of values of {name!r} does not fit its shape.")
    known = isinstance(dtype, str) and dtype in FLOATS
    if not (known if count else dtype is None):
        raise ValueError(f"the dtype of {name!r} is not one that a ticket can have.")
    return MaskedEntry(name, tuple(shape), count, dtype)


def _whole(numbers: Any, length: int) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) == length
        and all(type(number) is int and 0 <= number < 2**62 for number in numbers)
    )


def loads(text: str | bytes) -> Any:
    """JSON without repeated keys, NaN or Infinity."""
    try:
        if isinstance(text, bytes):
            text = text.decode("ascii")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is not valid JSON.") from error


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a repeated key")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(text)
