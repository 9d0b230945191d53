"""Values that travel by NCCL from the trainer's GPU to an engine's workers, by vLLM's own communicator.

What goes over the engine's routes is then only how many values come next. Not measured, nor run on GPUs: the tests
have gloo in the place of NCCL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor


class Group(Protocol):
    """The part of vLLM's ``PyNcclCommunicator`` that is used."""

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        """Send ``tensor`` from rank ``src`` to all others, into theirs."""
        ...


class Broadcast:
    """The sender's end. The trainer is rank 0, and the engine's workers follow.

    Args:
        address, port: where the ranks meet, on the trainer's machine.
        workers: of the engine: tensor x pipeline x data parallel.
        join: gives the sender's group; blocks until the workers have joined. None: vLLM's, on the current GPU.
    """

    def __init__(
        self,
        address: str,
        port: int,
        workers: int,
        join: Callable[[Mapping[str, Any]], Group] | None = None,
    ) -> None:
        self.meeting = {
            "master_address": address,
            "master_port": port,
            "rank_offset": 1,
            "world_size": workers + 1,
        }
        self._join = join or _join_as_sender
        self._group: Group | None = None

    def open(self, tell: Callable[[], None]) -> None:
        """Meet the workers, which `tell` sends to the meeting. An error of theirs is raised."""

        def join() -> None:
            self._group = self._join(self.meeting)

        _at_once(tell, join)

    def send(self, piece: Tensor, tell: Callable[[], None]) -> None:
        """Send values (n,), which `tell` has the workers receive."""
        group = self._group
        assert group is not None
        _at_once(tell, lambda: group.broadcast(piece.contiguous(), src=0, stream=_stream(piece)))


def receive(group: Group, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A worker's end: the next ``count`` values."""
    piece = torch.empty(count, dtype=dtype, device=device)
    group.broadcast(piece, src=0, stream=_stream(piece))
    return piece


def join_as_worker(meeting: Mapping[str, Any], parallel_config: Any) -> Group:
    """A worker's group, at the rank that follows from its place in the engine."""
    from vllm.distributed.weight_transfer import nccl_common

    info = nccl_common.NCCLWeightTransferInitInfo(**meeting)
    return nccl_common.worker_init_process_group(info, parallel_config)


def _join_as_sender(meeting: Mapping[str, Any]) -> Group:
    from vllm.distributed.weight_transfer import nccl_common

    return nccl_common.trainer_init(dict(meeting))


def _at_once(tell: Callable[[], None], act: Callable[[], None]) -> None:
    """Both, since each waits for the other. What refuses before it waits is raised, and nobody waits for it."""
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        told = thread.submit(tell)
        if told.done():
            told.result()
        act()
        told.result()
    finally:
        thread.shutdown(wait=False)


def _stream(tensor: Tensor) -> Any:
    return torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None
