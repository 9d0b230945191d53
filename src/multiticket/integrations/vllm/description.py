"""A mask as plain JSON, from which a worker makes the same mask: its rule, names and shapes."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import torch

from multiticket.mask import Mask, MaskRule
from multiticket.mask.positions import stored
from multiticket.ticket import delta


def describe(mask: Mask) -> dict[str, Any]:
    """``rule``, ``tensors`` and, where the rule does not give them, ``positions`` (about 1.3 bytes each, once)."""
    told: dict[str, Any] = {
        "rule": json.loads(mask.rule.to_json()),
        "tensors": [[name, list(shape), mask.count(name)] for name, shape in mask.shapes.items()],
    }
    if not mask.follows_rule:
        flats = [delta.encode(mask.indices(name).numpy()) for name in mask.names]
        told["positions"] = base64.b64encode(np.concatenate(flats).tobytes()).decode()
    return told


def described(rule: dict[str, Any], tensors: list[Any], positions: str | None = None) -> Mask:
    """The mask that `describe` told of. Raises ValueError where the parts do not fit together."""
    made = MaskRule.from_json(json.dumps(rule))
    shapes, counts = {}, {}
    for name, shape, count in tensors:
        shapes[name], counts[name] = tuple(shape), count
    if positions is None:
        mask = Mask.from_shapes(shapes, made)
    else:
        data = np.frombuffer(base64.b64decode(positions, validate=True), dtype=np.uint8)
        names = [name for name, count in counts.items() if count]
        flats = delta.decode(data, [counts[name] for name in names])
        mask = Mask(
            made,
            shapes,
            {name: stored(torch.from_numpy(flat)) for name, flat in zip(names, flats, strict=True)},
        )
    if any(mask.count(name) != count for name, count in counts.items()):
        raise ValueError("The mask's rule gives other counts on the worker than on the trainer.")
    return mask
