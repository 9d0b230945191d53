"""Tell one base model from another by the weights that a mask is about to change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from multiticket.mask.mask import Mask

_CHUNK = 2**20


def fingerprint(
    mask: Mask, base_values: Callable[[str], torch.Tensor], quantised: Mapping[str, str] | None = None
) -> str:
    """SHA-256, in hex, of the base's values at the mask's own positions, and of nothing else of it.

    ``base_values(name)`` gives them as a tensor of shape (k,), ordered as ``mask.indices(name)``, in any
    floating dtype and on any device. They are hashed as little-endian fp32, so a bf16 base and the same
    base loaded as fp32 have one fingerprint. Tensors come in the order of their names, each behind the line
    ``[name,shape,k]`` in JSON, so neither names nor shapes can be exchanged unnoticed. ``quantised`` says of quantised
    tensors how they are (`quantised.describe`): they count with their dequantised values, and with that behind k.
    """
    digest = hashlib.sha256(b"multiticket base 1\n")
    for name in sorted(mask.names):
        values = base_values(name).detach()
        assert values.shape == (mask.count(name),), name
        facts: list[object] = [name, list(mask.shape(name)), mask.count(name)]
        if quantised and name in quantised:
            facts.append(quantised[name])
        header = json.dumps(facts, separators=(",", ":"))
        digest.update(header.encode("ascii") + b"\n")
        for chunk in values.split(_CHUNK):
            digest.update(chunk.float().cpu().contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
