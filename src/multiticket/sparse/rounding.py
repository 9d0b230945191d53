"""What rounding hides of a step: values that moved in fp32 while the 16-bit weight they are written to stayed."""

from __future__ import annotations

import torch
from torch import Tensor

from multiticket.sparse.attachment import Attachment
from multiticket.sparse.distributed import local


class RoundingWatch:
    """Made before an optimiser step, asked after it.

    Between the two it holds a copy of the values (4 k bytes), and of none where weights are as precise as values.
    """

    def __init__(self, attachment: Attachment) -> None:
        self._before: list[tuple[str, Tensor]] = []
        self._attachment = attachment
        for name, values in attachment.named_parameters():
            if attachment.dense_dtype(name).itemsize < values.dtype.itemsize:
                self._before.append((name, local(values).clone()))

    def counts(self) -> Tensor:
        """How many values moved since but left their weight as it was, and how many moved: (2,), fp32.

        Of what this rank holds: under FSDP2, add up the ranks'.
        """
        now = dict(self._attachment.named_parameters())
        hidden = moved = torch.zeros((), device=next(iter(now.values())).device)
        for name, before in self._before:
            after, dtype = local(now[name]), self._attachment.dense_dtype(name)
            changed = after != before
            moved = moved + changed.sum()
            hidden = hidden + (changed & (after.to(dtype) == before.to(dtype))).sum()
        return torch.stack([hidden, moved])

    def hidden(self) -> float:
        """Of the values that moved since, the share whose weight did not change; 0 where none moved."""
        hidden, moved = self.counts().tolist()
        return hidden / max(moved, 1.0)
