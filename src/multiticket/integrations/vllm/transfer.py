"""vLLM's weight-transfer engine ``multiticket``: a sync is the k values of a known mask, and no index.

``vllm serve ... --weight-transfer-config '{"backend": "multiticket"}'`` or ``WeightTransferConfig(backend=...)``.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.logger import init_logger

from multiticket.integrations.vllm.base import checked_places
from multiticket.integrations.vllm.broadcast import Group, join_as_worker, receive
from multiticket.integrations.vllm.compatibility import incompatibility
from multiticket.integrations.vllm.description import described
from multiticket.integrations.vllm.places import Places
from multiticket.integrations.vllm.ranks import vllm_ranks
from multiticket.integrations.vllm.staging import DTYPES, Staging

logger = init_logger(__name__)


@dataclass
class TicketInitInfo(WeightTransferInitInfo):
    """Sent once: which positions, and of which base."""

    rule: dict[str, Any] = field(default_factory=dict)
    """The mask rule's fields."""
    tensors: list[Any] = field(default_factory=list)
    """``[name, shape, count]`` of every tensor in scope, in the model's order."""
    positions: str | None = None
    """For masks that do not follow from their rule: `multiticket.ticket.delta` bytes in base64."""
    fingerprint: str = ""
    """Of the base, at the mask's positions."""
    nccl: dict[str, Any] | None = None
    """Where the workers meet the trainer, as vLLM's ``NCCLWeightTransferInitInfo`` has it, if values come by NCCL."""


@dataclass
class TicketUpdateInfo(WeightTransferUpdateInfo):
    """One piece of a sync."""

    sync: str = ""
    """A name for the sync, the same in all its pieces."""
    offset: int = 0
    """How many of the k values came before this piece."""
    dtype: str = "float32"
    """``bfloat16``, ``float16`` or ``float32``."""
    values: str | bytes = ""
    """Little-endian values: as bytes, or in base64 where they travel as JSON."""
    broadcast: int = 0
    """How many values of this piece come by NCCL, in the place of `values`."""


class TicketTransferEngine(WeightTransferEngine[TicketInitInfo, TicketUpdateInfo]):
    """The worker's side. Values are staged as they come, and written by ``finish_weight_update`` at once."""

    init_info_cls = TicketInitInfo
    update_info_cls = TicketUpdateInfo
    supports_draft_weight_update = False

    _places: Places | None = None
    _base: list[torch.Tensor]
    _staging: Staging
    _group: Group | None = None

    def init_transfer_engine(self, init_info: TicketInitInfo) -> None:
        """Find the mask's places. The weights are the base's afterwards, whatever a trainer sent before.

        Raises ValueError for another base or an engine that cannot take a ticket.
        """
        if self._places is not None:
            self._places.restore(self._base)
            self._places = None
        mask = described(init_info.rule, init_info.tensors, init_info.positions)
        dtype = self.model_config.dtype
        places = checked_places(
            self.model, mask, init_info.fingerprint, vllm_ranks(), dtype, incompatibility(self.vllm_config)
        )
        self._base, self._staging, self._places = places.save(), Staging(places.k), places
        if init_info.nccl is not None:
            self._group = join_as_worker(init_info.nccl, self.parallel_config)

    def start_weight_update(self) -> None:
        """Begin a sync; what an unfinished one left is forgotten."""
        self._ready()
        self._staging.forget()

    def receive_weights(self, update_info: TicketUpdateInfo) -> None:
        """Stage one piece."""
        self._ready()
        if update_info.broadcast:
            self._receive(update_info)
            return
        data = update_info.values
        if isinstance(data, str):
            try:
                data = base64.b64decode(data, validate=True)
            except binascii.Error as error:
                raise ValueError("The values are not valid base64; send all values again.") from error
        self._staging.add(update_info.sync, update_info.offset, update_info.dtype, data)

    def _receive(self, update_info: TicketUpdateInfo) -> None:
        """Take what the trainer broadcasts before looking at it, or the trainer would wait."""
        if self._group is None:
            raise ValueError(
                "The engine has not met the trainer over NCCL: call init_weight_transfer_engine."
            )
        if update_info.dtype not in DTYPES:
            raise ValueError(f"Values come as {', '.join(DTYPES)}, not {update_info.dtype!r}.")
        piece = receive(self._group, update_info.broadcast, DTYPES[update_info.dtype], self.device)
        self._staging.add_tensor(update_info.sync, update_info.offset, piece)

    @torch.no_grad()
    def finish_weight_update(self) -> None:
        """Write the k values, if all came; a sync of which nothing came is called off.

        Raises ValueError where some are missing, and writes none of them.
        """
        places = self._ready()
        if self._staging.sync is None:
            logger.warning("A weight update without values was cancelled; the weights are unchanged.")
            return
        places.write(self._staging.whole())
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def shutdown(self) -> None:
        """Leave the trainer's group; nothing else is held but host memory."""
        if self._group is not None and hasattr(self._group, "destroy"):
            self._group.destroy()
        self._group = None

    def _ready(self) -> Places:
        if self._places is None:
            raise ValueError("The engine has no mask yet: call init_weight_transfer_engine first.")
        return self._places
