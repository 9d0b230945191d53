"""A mask, its values and its base's fingerprint: what a ticket is made of, once or several times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from multiticket.mask import Mask

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The dtypes a ticket's values may have, by their safetensors names."""

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Section:
    """Trained values of one mask, bound to one base. Immutable; tensors are on the CPU."""

    mask: Mask
    values: Mapping[str, Tensor]
    """By tensor name: shape (mask.count(name),), ordered as mask.indices(name)."""
    fingerprint: str
    """`multiticket.mask.fingerprint` of the base, 64 hexadecimal digits."""

    def __post_init__(self) -> None:
        if not isinstance(self.fingerprint, str) or not _HEX.fullmatch(self.fingerprint):
            raise ValueError("A ticket's fingerprint must be 64 hexadecimal digits, from mask.fingerprint.")
        if set(self.values) != set(self.mask.names):
            other = sorted(set(self.values) ^ set(self.mask.names))[0]
            raise ValueError(
                f"A ticket needs values for exactly the mask's tensors; {other!r} is in one of both."
            )
        kept = {}
        for name in self.mask.names:
            value = self.values[name].detach()
            if value.shape != (self.mask.count(name),):
                raise ValueError(
                    f"{name} has {self.mask.count(name)} masked positions, and values of shape {tuple(value.shape)}."
                )
            if value.dtype not in FLOATS.values():
                raise ValueError(f"A ticket cannot hold {value.dtype} values; {name} has them.")
            kept[name] = value.to("cpu", copy=True).contiguous()
        object.__setattr__(self, "values", kept)

    @cached_property
    def positions(self) -> dict[str, Tensor]:
        """The mask's positions by tensor, made once and kept as int32 where they fit: 4 bytes a value.

        Making them takes longer than writing the values, so the second apply is several times as fast.
        """
        positions = {}
        for name in self.mask.names:
            flat = self.mask.indices(name)
            positions[name] = flat.to(torch.int32) if int(flat[-1]) < 2**31 else flat
        return positions
