"""The k values of one sync, which come in pieces and are used whole or not at all."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""The dtypes in which values travel, by the names that vLLM's own transfers use."""


class Staging:
    """Collects the pieces of one sync. Nothing of it is in the weights before `whole` gives it out."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.forget()

    def forget(self) -> None:
        """Throw away what has come."""
        self.sync: str | None = None
        self.received = 0
        self._values = torch.empty(0)

    def add(self, sync: str, offset: int, dtype: str, data: bytes) -> None:
        """One piece: values ``offset`` and on, as little-endian bytes. Pieces come in order.

        Raises ValueError, and forgets the sync, where a piece is missing, repeated or of another sync.
        """
        try:
            self._check(sync, offset, dtype, data)
        except ValueError:
            self.forget()
            raise
        self._put(sync, offset, torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]))

    def add_tensor(self, sync: str, offset: int, piece: Tensor) -> None:
        """One piece as values (n,), on any device."""
        held = piece.cpu()
        self.add(
            sync, offset, str(held.dtype).removeprefix("torch."), held.view(torch.uint8).numpy().tobytes()
        )

    def _put(self, sync: str, offset: int, piece: Tensor) -> None:
        if self.sync is None:
            self.sync, self._values = sync, torch.empty(self.k, dtype=piece.dtype)
        self._values[offset : offset + len(piece)] = piece
        self.received = offset + len(piece)

    def _check(self, sync: str, offset: int, dtype: str, data: bytes) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"Values come as {', '.join(DTYPES)}, not {dtype!r}.")
        size = DTYPES[dtype].itemsize
        if not data or len(data) % size:
            raise ValueError(f"{len(data)} bytes are not a whole number of {dtype} values.")
        if self.sync is not None and (sync != self.sync or self._values.dtype != DTYPES[dtype]):
            raise ValueError(
                f"A piece of sync {sync!r} came while {self.sync!r} was under way; send the values whole again."
            )
        if offset != self.received:
            raise ValueError(
                f"A piece of the sync is missing: values from {offset} arrived after {self.received} of "
                f"{self.k}; send all values again."
            )
        if offset + len(data) // size > self.k:
            raise ValueError(f"More than the mask's {self.k} values arrived; send all values again.")

    def whole(self) -> Tensor:
        """The k values, after which the staging is empty. Raises ValueError, and forgets, where some are missing."""
        values, received = self._values, self.received
        self.forget()
        if received != self.k:
            raise ValueError(
                f"The sync was interrupted: {received} of {self.k} values arrived, and none is used; send all "
                "values again."
            )
        return values
