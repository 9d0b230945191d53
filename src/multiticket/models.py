"""Load the model that a run starts from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from multiticket import bases
from multiticket.bases.known import KNOWN, both_ways
from multiticket.errors import why_not_loaded
from multiticket.ticket.base_name import snapshot


def load_model(
    name: str, dtype: str = "float32", revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in `dtype` on the default device, with its tokenizer padding on the left.

    Args:
        name: a shipped or known base, a folder with a Hugging Face checkpoint, a GGUF file, or a name on the hub.
        revision: of a name on the hub; None: the newest.

    Raises:
        ValueError: if there is no such model, or it has no tokenizer.
    """
    place = bases.resolve(name)
    if name.startswith((".", "/", "~")) and not Path(place).is_dir():
        raise ValueError(
            f"There is no folder {name}: give a shipped base, a checkpoint folder, or a hub name."
        )
    at = {"revision": revision} if revision is not None and not Path(place).is_dir() else {}
    with reading("load the model", name):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            place, padding_side="left", truncation_side="left", **at
        )
        commit = None if Path(place).is_dir() else _commit_in_cache(place, revision)
        at = at if commit is None else {"revision": commit}  # both of one commit
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype), **at)
    if commit is not None:
        model.config._commit_hash = commit  # as transformers called it while it kept it
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if torch.cuda.is_available():
        model.to("cuda")
    return model, tokenizer


@contextmanager
def reading(what: str, name: str) -> Iterator[None]:
    """Where transformers cannot do `what` with a model, a ValueError that says what else to give."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        if name in KNOWN:
            raise ValueError(f"{name} is not here: {both_ways(name)}; {why_not_loaded(error)}.") from None
        known = ", ".join(bases.names())
        raise ValueError(
            f"Cannot {what} {name!r}: give a shipped base ({known}), a model's folder, or a hub name; "
            f"{why_not_loaded(error)}."
        ) from None


def _commit_in_cache(name: str, revision: str | None) -> str | None:
    """The commit from which a model on the hub was read just now."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    commit = (
        re.search(r"/snapshots/([0-9a-f]{40})/", Path(found).as_posix()) if isinstance(found, str) else None
    )
    return None if commit is None else commit[1]


def stored_dtype(name: str) -> str | None:
    """The dtype in which a model's checkpoint holds its weights, as its configuration says; None where it does not.

    None too for quantised weights, which have several.
    """
    try:
        config = AutoConfig.from_pretrained(bases.resolve(name))
    except (OSError, ValueError, KeyError):
        return None
    if getattr(config, "quantization_config", None):
        return None
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return None if dtype is None else str(dtype).removeprefix("torch.")


def name_and_revision(name: str, model: Any = None) -> tuple[str, str | None]:
    """What a model is called everywhere: the hub's name and commit, where it came from there.

    A path into the hub's cache tells both; a name on the hub tells the first, and the loaded `model` the commit. A
    shipped base and any other folder keep their name.
    """
    cached = snapshot(name)
    if cached is not None:
        return cached
    if name in bases.names() or Path(name).is_dir():
        return name, None
    return name, getattr(getattr(model, "config", None), "_commit_hash", None)
