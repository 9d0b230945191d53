"""What rounding hides of a step: values that moved in fp32 while the 16-bit weight they are written to stayed."""

from __future__ import annotations

import torch
from torch import Tensor

from multiticket.sparse.attachment import Attachment
from multiticket.sparse.sharded import local


class RoundingWatch:
    """Made before an optimiser step, asked after it.

    Between the two it holds a copy of the values (4 k bytes), and of none where weights are as precise as values.
    """

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._before = [
            local(values).clone() if dtype.itemsize < values.dtype.itemsize else None
            for values, dtype in attachment.values_by_dtype()
        ]

    def counts(self) -> Tensor:
        """How many values moved since but left their weight as it was, and how many moved: (2,), fp32.

        Of what this rank holds: under FSDP2, add up the ranks'.
        """
        hidden: Tensor | float = 0.0
        moved: Tensor | float = 0.0
        for before, (values, dtype) in zip(self._before, self._attachment.values_by_dtype(), strict=True):
            if before is not None:
                after = local(values)
                changed = after != before
                moved = moved + changed.sum()
                hidden = hidden + (changed & (after.to(dtype) == before.to(dtype))).sum()
        device = next(self._attachment.parameters()).device
        hidden, moved = (
            torch.as_tensor(count, device=device, dtype=torch.float32) for count in (hidden, moved)
        )
        return torch.stack([hidden, moved])

    def hidden(self) -> float:
        """Of the values that moved since, the share whose weight did not change; 0 where none moved."""
        hidden, moved = self.counts().tolist()
        return hidden / max(moved, 1.0)
