"""A Hugging Face checkpoint on disk, tensor by tensor through memory maps: never the whole model in memory."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from multiticket.mask.selectors import module_kind
from multiticket.ticket.section import FLOATS

INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: file, first byte, dtype and shape."""

    file: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def mapped(self, writable: bool = False) -> Tensor:
        """The tensor over the file's own bytes; writing to it needs ``writable``, and changes the file."""
        size = math.prod(self.shape) * self.dtype.itemsize
        if not size:
            return torch.empty(self.shape, dtype=self.dtype)
        data = np.memmap(self.file, np.uint8, "r+" if writable else "c", self.begin, (size,))
        return torch.from_numpy(data).view(self.dtype).view(self.shape)


class Checkpoint:
    """The floating-point tensors of the safetensors files in ``folder``, by their names in the checkpoint.

    Raises ValueError where the folder holds no readable safetensors checkpoint.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.files = _weight_files(self.folder)
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            self.tensors.update(_tensors_of(file))

    def find(self, name: str, shape: tuple[int, ...]) -> list[StoredTensor]:
        """Every place of the model's tensor ``name``: one, or two where a tied output head is stored again.

        A checkpoint of the bare model lacks the prefix that the model with a head gives its names. Raises
        ValueError where the checkpoint stores the tensor under another name or shape altogether.
        """
        if self._is_quantised():
            raise ValueError(
                f"The weights in {self.folder} are quantised, so no values can be read from them or written into them; "
                "load the model with transformers and use Ticket.apply(model)."
            )
        names = [n for n in self.tensors if n == name]
        names = names or [n for n in self.tensors if name.endswith(f".{n}") or n.endswith(f".{name}")]
        if len(names) != 1:
            raise ValueError(
                f"The checkpoint {self.folder} does not store {name} as one tensor; load the model with transformers "
                "and use Ticket.merge(model) and save_pretrained."
            )
        places = [self.tensors[names[0]]]
        if places[0].shape != shape:
            raise ValueError(
                f"{name} has shape {places[0].shape} in the checkpoint {self.folder}, and the ticket needs {shape}."
            )
        if self._stores_tied_head() and names[0] != HEAD and module_kind(name) == "embeddings":
            head = self.tensors[HEAD]
            places += [head] if head.shape == shape else []
        return places

    def model_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the model's tensors in its own order, tied ones once.

        From the model class, built on the meta device, where transformers is installed and knows it; otherwise as
        the checkpoint stores them.
        """
        try:
            from transformers import AutoConfig, AutoModelForCausalLM

            config = AutoConfig.from_pretrained(self.folder)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except (ImportError, OSError, ValueError, KeyError):
            tied = self._stores_tied_head()
            return {n: t.shape for n, t in self.tensors.items() if not (tied and n == HEAD)}
        from multiticket.mask.names import candidate_shapes

        return candidate_shapes(model)

    def _is_quantised(self) -> bool:
        config = self.folder / "config.json"
        return config.is_file() and bool(_object(config).get("quantization_config"))

    def _stores_tied_head(self) -> bool:
        config = self.folder / "config.json"
        if HEAD not in self.tensors or not config.is_file():
            return False
        return bool(_object(config).get("tie_word_embeddings", False))


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder with a checkpoint.")
    if (folder / INDEX).is_file():
        names = sorted(set(_object(folder / INDEX).get("weight_map", {}).values()))
        files = [folder / Path(name).name for name in names]
    else:
        files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} has no model*.safetensors; save the checkpoint with save_pretrained first."
        )
    return files


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON.") from error
    return found if isinstance(found, dict) else {}


def _tensors_of(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, "np"):  # the library's own check that header and data fit together
            pass
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error}).") from error
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            file, 8 + length + entry["data_offsets"][0], FLOATS[entry["dtype"]], tuple(entry["shape"])
        )
        for name, entry in header.items()
        if entry["dtype"] in FLOATS
    }
