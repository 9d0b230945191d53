"""vLLM: k values a sync into a rollout engine, and many tickets on one served base. See docs/vllm.md.

Importing this imports no vLLM; what runs inside an engine (`transfer`, `worker`, `middleware`) is named to vLLM as
text.
"""

from __future__ import annotations

BACKEND = "multiticket"
"""The weight-transfer engine's name."""


def register() -> None:
    """The entry point of ``vllm.general_plugins``: vLLM calls it in each of its processes."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from multiticket.integrations.vllm.cpu_weights import keep_if_asked

    keep_if_asked()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "multiticket.integrations.vllm.transfer", "TicketTransferEngine"
        )
