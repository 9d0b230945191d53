"""Values that travel beside the engine's requests: over gloo here, in the place of vLLM's NCCL group."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from packed_models import SHAPES

from multiticket.integrations.vllm.broadcast import Broadcast, receive
from multiticket.integrations.vllm.description import described
from multiticket.integrations.vllm.staging import DTYPES, Staging
from multiticket.integrations.vllm.sync import TicketSync
from multiticket.mask import Mask, MaskRule

MASK = Mask.from_shapes(SHAPES, MaskRule("random", 0.5))


class Gloo:
    """What vLLM's communicator does, by one end of a gloo group."""

    def __init__(self, store: Any, rank: int) -> None:
        self.group = dist.ProcessGroupGloo(store, rank, 2)  # type: ignore[attr-defined]

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        assert stream is None
        self.group.broadcast(tensor, src).wait()


class Engine:
    """vLLM's worker, whose requests are answered as those of the transfer engine are."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.group: Gloo | None = None
        self.staging = Staging(MASK.nnz)
        self.values = torch.zeros(MASK.nnz)
        self.sent: list[dict[str, Any]] = []
        self.refuses = False

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        told = json.loads(json.dumps(init_info))
        assert described(told["rule"], told["tensors"]).nnz == MASK.nnz
        if self.refuses:
            raise ValueError("another base")
        if "nccl" in told:
            assert told["nccl"]["world_size"] == 2
            self.group = Gloo(self.store, told["nccl"]["rank_offset"])

    def start_weight_update(self) -> None:
        self.staging.forget()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        told = json.loads(json.dumps(update_info))
        self.sent.append(told)
        assert self.group is not None
        piece = receive(self.group, told["broadcast"], DTYPES[told["dtype"]], torch.device("cpu"))
        self.staging.add_tensor(told["sync"], told["offset"], piece)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.values = self.staging.whole()


@pytest.fixture
def store() -> Any:
    return dist.HashStore()


def broadcast(store: Any) -> Broadcast:
    return Broadcast("127.0.0.1", 1, workers=1, join=lambda meeting: Gloo(store, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece_bytes", [16, 2**20])
def test_values_arrive_as_they_are_and_not_in_requests(
    store: Any, dtype: torch.dtype, piece_bytes: int
) -> None:
    engine = Engine(store)
    sync = TicketSync(engine, MASK, "", piece_bytes, broadcast(store))
    for seed in range(2):
        values = torch.randn(MASK.nnz, generator=torch.Generator().manual_seed(seed)).to(dtype)
        sync.send(values)
        assert torch.equal(engine.values, values)
    assert sum(told["broadcast"] for told in engine.sent) == 2 * MASK.nnz
    assert not any("values" in told for told in engine.sent)


def test_an_engine_that_refuses_is_not_waited_for(store: Any) -> None:
    engine = Engine(store)
    engine.refuses = True
    raised: list[BaseException] = []

    def begin() -> None:
        try:
            TicketSync(engine, MASK, "", broadcast=broadcast(store))
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    thread.join(20)
    assert [str(error) for error in raised] == ["another base"]
