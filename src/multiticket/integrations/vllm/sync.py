"""The trainer's side: send a mask's k values to a vLLM engine, whole or not at all. Needs no vLLM, and no GPU."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from multiticket.integrations.vllm.broadcast import Broadcast
from multiticket.integrations.vllm.description import describe
from multiticket.integrations.vllm.staging import DTYPES
from multiticket.mask import Mask

PIECE_BYTES = 64 * 2**20
"""Of raw values in one request."""


class Engine(Protocol):
    """The part of an engine that a sync talks to: vLLM's own `VLLMWeightSyncClient`, and pausing."""

    def pause(self) -> None:
        """Let running requests end, let new ones wait, and empty the prefix cache."""

    def resume(self) -> None: ...

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class TicketSync:
    """Sends the values of one mask to one engine, step after step."""

    def __init__(
        self,
        engine: Engine,
        mask: Mask,
        fingerprint: str,
        piece_bytes: int = PIECE_BYTES,
        broadcast: Broadcast | None = None,
    ) -> None:
        """Tell the engine which positions, once. The engine holds the base afterwards.

        Args:
            fingerprint: of the base at the mask's positions (`multiticket.mask.fingerprint`).
            broadcast: how values travel by NCCL; None: in the engine's own requests.

        Raises what the engine's client raises where the engine refuses: another base, or weights that cannot be
        written in place.
        """
        self.engine = engine
        self.mask = mask
        self._piece_bytes = piece_bytes
        self._broadcast = broadcast
        about = {**describe(mask), "fingerprint": fingerprint}
        engine.init_weight_transfer_engine(about)  # which refuses before anyone waits for it
        if broadcast is not None:
            meeting = {**about, "nccl": broadcast.meeting}
            broadcast.open(lambda: engine.init_weight_transfer_engine(meeting))

    def send(self, values: Tensor, version: str | None = None) -> None:
        """Pause the engine, replace its k values, and let it go on.

        No request is answered by two sets of weights: those under way end before, those that come wait. Where
        anything fails, the error is raised and the engine stays paused with its former values, or, where only
        answers were lost, the new ones; sending again repeats the sync whole.

        Args:
            values: (k,), bf16, fp16 or fp32, on any device, in the order of ``mask.names`` and their positions.
            version: what vLLM shall call these weights (``GET /weight_info``).
        """
        if values.shape != (self.mask.nnz,):
            raise ValueError(
                f"The mask has {self.mask.nnz} positions, and {tuple(values.shape)} values were given."
            )
        if _name(values.dtype) not in DTYPES:
            raise ValueError(f"Values are sent as {', '.join(DTYPES)}, not {_name(values.dtype)}.")
        self.engine.pause()
        self._start()
        for request in self._pieces(values):
            self._update(request, values)
        self.engine.finish_weight_update(version)
        self.engine.resume()

    def _start(self) -> None:
        """Begin; where a sync that was cut is still open on the engine, call it off first."""
        try:
            self.engine.start_weight_update()
        except Exception:
            for _ in range(2):  # the first says what was missing, the second finds nothing and closes it
                try:
                    self.engine.finish_weight_update()
                except Exception:
                    continue
            self.engine.start_weight_update()

    def _pieces(self, values: Tensor) -> Iterator[dict[str, Any]]:
        """The requests of one sync, with their values, or with how many come by NCCL."""
        sync = uuid.uuid4().hex
        flat = values.detach().contiguous()
        count = max(1, self._piece_bytes // flat.element_size())
        for offset in range(0, len(flat), count):
            piece = flat[offset : offset + count]
            about = {"sync": sync, "offset": offset, "dtype": _name(values.dtype)}
            if self._broadcast is not None:
                yield {**about, "broadcast": len(piece)}
            else:
                data = piece.cpu().view(torch.uint8).numpy().tobytes()
                yield {**about, "values": base64.b64encode(data).decode()}

    def _update(self, request: dict[str, Any], values: Tensor) -> None:
        if self._broadcast is None:
            self.engine.update_weights(request)
            return
        begin = request["offset"]
        piece = values.detach()[begin : begin + request["broadcast"]]
        self._broadcast.send(piece, lambda: self.engine.update_weights(request))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
