"""Models in llama.cpp's file format: dequantised once by transformers' loader into a plain checkpoint.

Everything else here reads checkpoints: training, planning, merging, serving. So a GGUF file becomes one, in fp32 (the
values that the file stands for, which 16 bits would round), in a folder of Hugging Face's cache that is named after the
file's content. A ticket trained on it is bound to those values. `save_pretrained` works on what is loaded from there;
on what transformers loads from the file itself it does not, for that is marked as quantised.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

SUFFIX = ".gguf"
FACTS = "dequantised.json"
"""Beside the checkpoint: the file's name, its SHA-256, and how many of its tensors have which type."""
CHUNK = 2**24


def is_gguf(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def dequantised(name: str) -> Path:
    """The folder of a file's dequantised checkpoint, made where there is none yet.

    Raises:
        ValueError: there is no such file, the `gguf` package is missing, or transformers cannot read the file.
    """
    file = Path(name).expanduser()
    if not file.is_file():
        raise ValueError(f"There is no file {name}: give a GGUF file, a checkpoint folder, or a hub name.")
    digest = _sha256(file)
    folder = cache_folder() / f"{file.stem}-{digest[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=".half-", dir=folder.parent))
        try:
            _write(file, digest, half)
            try:
                half.rename(folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return folder


def facts_of(place: str) -> dict[str, Any] | None:
    """Of a checkpoint's folder: the GGUF file whose values it holds; None where it is of no such file."""
    facts = Path(place) / FACTS
    return json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else None


def cache_folder() -> Path:
    """Where dequantised checkpoints lie."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_HOME", HF_HOME)).expanduser() / "multiticket" / "gguf"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write(file: Path, digest: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from multiticket.errors import first_sentence

    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(
            f"Reading {file.name} needs the gguf package: pip install 'multiticket[gguf]'."
        ) from None
    try:
        types = Counter(tensor.tensor_type.name for tensor in GGUFReader(file).tensors)
        at: dict[str, Any] = {"gguf_file": file.name}
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **at)
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **at)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise ValueError(f"transformers cannot read {file}: {first_sentence(error)}.") from None
    _no_longer_quantised(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {"file": file.name, "sha256": digest, "tensors": dict(types)}
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _no_longer_quantised(model: Any) -> None:
    """Take the marks away that have `save_pretrained` refuse a model whose weights are plain by now."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
