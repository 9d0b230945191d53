"""A checkpoint's safetensors files in another dtype, tensor by tensor: never a whole file in memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multiticket.ticket.section import FLOATS

CAST = {"F64", "F32", "F16", "BF16"}
"""What is cast; integers stay, and so do 8-bit floats, whose scales lie elsewhere."""
_AT_ONCE = 1 << 22
"""Entries that are read, cast and written together."""


def cast_file(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Write a safetensors file with its floating-point tensors in ``dtype``, rounded to the nearest."""
    with source.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    (name,) = [name for name, known in FLOATS.items() if known == dtype]
    kept = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
    entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"][0])
    written: dict[str, Any] = dict(kept)
    end = 0
    for key, entry in entries:
        begin, stop = entry["data_offsets"]
        size = stop - begin
        if entry["dtype"] in CAST:
            size = size // FLOATS[entry["dtype"]].itemsize * dtype.itemsize
        written[key] = {
            "dtype": name if entry["dtype"] in CAST else entry["dtype"],
            "shape": entry["shape"],
            "data_offsets": [end, end + size],
        }
        end += size
    head = json.dumps(written, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, entry in entries:
            begin, stop = entry["data_offsets"]
            known = FLOATS[entry["dtype"]] if entry["dtype"] in CAST else torch.uint8
            step = _AT_ONCE * known.itemsize
            for start in range(begin, stop, step):
                count = min(step, stop - start)
                read = np.fromfile(source, np.uint8, count, offset=8 + length + start)
                some = torch.from_numpy(read).view(known)
                if entry["dtype"] in CAST:
                    some = some.to(dtype)
                file.write(some.view(torch.uint8).numpy().data)


def tell_dtype(folder: Path, dtype: torch.dtype, index: str) -> None:
    """Have a checkpoint's ``config.json`` name ``dtype``, and its index say how large its files are now."""
    config = folder / "config.json"
    if config.is_file():
        config.write_text(json.dumps(_naming(json.loads(config.read_text()), dtype), indent=2) + "\n")
    if (folder / index).is_file():
        told = json.loads((folder / index).read_text())
        files = {folder / Path(name).name for name in told.get("weight_map", {}).values()}
        if isinstance(told.get("metadata"), dict) and "total_size" in told["metadata"]:
            told["metadata"]["total_size"] = sum(map(_data_bytes, files))
            (folder / index).write_text(json.dumps(told, indent=2) + "\n")


def _naming(config: Any, dtype: torch.dtype) -> Any:
    """With ``dtype`` wherever a dtype was named, in the configurations of parts as well."""
    if not isinstance(config, dict):
        return config
    name = str(dtype).removeprefix("torch.")
    return {
        key: name if key in ("dtype", "torch_dtype") and isinstance(value, str) else _naming(value, dtype)
        for key, value in config.items()
    }


def _data_bytes(file: Path) -> int:
    with file.open("rb") as opened:
        return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")
