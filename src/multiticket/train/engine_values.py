"""A ticket's sync to a vLLM engine: its k values, in the place of TRL's push of every dense tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from multiticket.integrations.vllm.base import checked_places
from multiticket.integrations.vllm.clients import HttpEngine
from multiticket.integrations.vllm.compatibility import incompatibility
from multiticket.integrations.vllm.ranks import vllm_ranks
from multiticket.integrations.vllm.sync import TicketSync
from multiticket.sparse import Attachment
from multiticket.train.trl_compat import vllm_generation

SERVER = """vllm serve MODEL --weight-transfer-config '{"backend": "multiticket"}'"""


@contextmanager
def engine_as_trained(model: nn.Module, attachment: Attachment | None) -> Iterator[None]:
    """Within, TRL makes its vLLM engine or client so that it fits the run.

    An engine in this process gets the model's training dtype, which TRL does not pass on: a bf16 checkpoint trained in
    fp32 would be sampled in bf16, and small changes of its values rounded away. A client does not open NCCL, which
    needs CUDA, before `push_values` knows whether a ticket needs it.
    """
    make, client = vllm_generation.LLM, vllm_generation.VLLMClient
    dtype = next(model.parameters()).dtype
    on_cpu = next(model.parameters()).device.type == "cpu"

    def engine(*args: Any, **kwargs: Any) -> Any:
        # Compiling for a CPU takes minutes, and is for those who serve on one.
        given = {"enforce_eager": True} if on_cpu else {}
        return make(*args, **{"dtype": str(dtype).removeprefix("torch."), **given, **kwargs})

    class Client(client):  # type: ignore[misc, valid-type]
        def init_communicator(self, device: Any = 0) -> None:
            self.open_dense = lambda: client.init_communicator(self, device=device)

    with mock.patch.multiple(
        vllm_generation, LLM=engine, VLLMClient=client if attachment is None else Client
    ):
        yield


def push_values(generation: Any, attachment: Attachment) -> bool:
    """Have TRL's vLLM bridge send the k values of a ticket; whether it does.

    It does not, and says why, where the engine refuses (a server without our weight-transfer engine, a loader that
    transforms what it loads, ...) or discards its weights between steps (sleep mode): every dense tensor goes then.

    Args:
        generation: the trainer's ``VLLMGeneration``, made within `engine_as_trained`.
    """
    try:
        send = (
            _in_process(generation, attachment)
            if generation.mode == "colocate"
            else _to_server(generation, attachment)
        )
    except ValueError as error:
        warnings.warn(
            f"Every dense tensor is pushed to vLLM at each step, not the ticket's values alone: {error}",
            stacklevel=2,
        )
        if hasattr(getattr(generation, "vllm_client", None), "open_dense"):
            generation.vllm_client.open_dense()
        return False

    def sync_weights() -> None:
        attachment.flush()
        send(torch.cat([attachment.dense_values(name) for name in attachment.mask.names]))
        generation.accelerator.wait_for_everyone()

    generation.sync_weights = sync_weights
    return True


def _in_process(generation: Any, attachment: Attachment) -> Callable[[Tensor], None]:
    if generation.enable_sleep_mode:
        raise ValueError("sleep mode discards the engine's weights after each step.")
    worker = generation.llm.llm_engine.model_executor.driver_worker
    model = worker.model_runner.model
    if not isinstance(model, nn.Module):
        raise ValueError("the engine's model is none of torch's.")
    config = generation.llm.llm_engine.vllm_config
    places = checked_places(
        model,
        attachment.mask,
        attachment.base_fingerprint,
        vllm_ranks(),
        config.model_config.dtype,
        incompatibility(config),
    )

    def send(values: Tensor) -> None:
        with torch.no_grad():
            places.write(values.cpu())
        generation.llm.reset_prefix_cache()

    return send


def _to_server(generation: Any, attachment: Attachment) -> Callable[[Tensor], None]:
    """Rank 0 talks to the server, and all ranks do what it found."""
    sync, told = None, [None]
    if generation.accelerator.is_main_process:
        try:
            url = getattr(generation.vllm_client, "base_url", None)
            if url is None:
                raise ValueError("the client does not say where its server is.")
            sync = TicketSync(HttpEngine(url), attachment.mask, attachment.base_fingerprint)
        except ValueError as error:
            told = [f"{error} For the values alone start it as {SERVER}."]  # type: ignore[list-item]
    if generation.accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(told)
    if told[0] is not None:
        raise ValueError(told[0])
    return sync.send if sync is not None else lambda values: None
