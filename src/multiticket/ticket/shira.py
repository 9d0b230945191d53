"""PEFT's SHiRA adapters as tickets: changed positions of linear layers, on a base.

SHiRA adds its values to the base's; a ticket holds the sums, in the dtype of the base's weights, computed as PEFT's
own merge computes them. The way back is left out: a SHiRA file holds differences, from which a sum is not found again
bit for bit, and linear layers alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from multiticket.mask import Mask, fingerprint
from multiticket.ticket.ticket import Ticket

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_VALUES, _PLACES = ".shira_weight", ".shira_indices"


def import_shira(adapter: str | os.PathLike[str], model: nn.Module) -> Ticket:
    """The ticket that changes `model` as the adapter in a folder does.

    Args:
        adapter: a folder with PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: the adapter's base, in the dtype in which the ticket is wanted.

    Raises:
        ValueError: the folder holds no SHiRA adapter, one that changes more than SHiRA's positions, or one that does
            not fit the model.
    """
    folder = Path(adapter)
    config, tensors = _read(folder)
    weights = dict(model.named_parameters())
    places: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for key in [key for key in tensors if key.endswith(_VALUES)]:
        name = key.removeprefix(_PREFIX).removesuffix(_VALUES) + ".weight"
        if name not in weights:
            raise ValueError(f"The model has no parameter {name}, which the adapter in {folder} changes.")
        indices, delta = tensors.pop(key.removesuffix(_VALUES) + _PLACES, None), tensors[key]
        weight = weights[name].detach()
        if weight.dim() != 2 or indices is None or indices.shape != (2, len(delta)):
            raise ValueError(f"The adapter in {folder} does not say where the values of {name} belong.")
        if len(delta) and bool((indices.amax(1) >= torch.tensor(weight.shape)).any() or indices.min() < 0):
            raise ValueError(
                f"The adapter in {folder} changes {name} outside its shape {tuple(weight.shape)}."
            )
        flat = (indices[0].long() * weight.shape[1] + indices[1].long()).unique()
        places[name] = flat
        values[name] = _sums(weight, indices, delta).flatten()[flat]
    left = sorted(key for key in tensors if not key.endswith(_VALUES))
    if left or not places:
        what = f"also changes {left[0]}" if left else "changes nothing"
        raise ValueError(f"The adapter in {folder} {what}: a ticket is made of SHiRA's positions alone.")
    mask = Mask.from_indices(model, places)
    print_of_base = fingerprint(mask, lambda name: weights[name].detach().flatten()[mask.indices(name)])
    told = {"imported_from": "peft SHiRA", "model": config.get("base_model_name_or_path")}
    settings = {
        name: config[name] for name in ("r", "mask_type", "random_seed") if config.get(name) is not None
    }
    provenance = {**{name: value for name, value in told.items() if value}, "shira": settings}
    return Ticket(mask, {name: values[name] for name in mask.names}, print_of_base, provenance)


def _sums(weight: Tensor, indices: Tensor, delta: Tensor) -> Tensor:
    """The weight with the adapter in it (out, in), as PEFT's merge adds it."""
    total = weight.cpu().clone()
    total += torch.sparse_coo_tensor(indices.long(), delta, tuple(weight.shape))
    return total


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no PEFT adapter with {CONFIG} and {WEIGHTS}: {error}.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "SHIRA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(
            f"The adapter in {folder} is of the kind {kind}, not SHIRA: only SHiRA's can be imported."
        )
    return config, tensors
