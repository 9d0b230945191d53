"""vLLM's ``--worker-extension-cls``: what a worker of ``multiticket serve`` can do beside vLLM's own."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from multiticket.integrations.vllm.compatibility import incompatibility
from multiticket.integrations.vllm.ranks import vllm_ranks
from multiticket.integrations.vllm.ticket_cache import TicketCache


class TicketWorker:
    """Mixed into vLLM's worker, and called by ``collective_rpc`` between two steps of the engine.

    Each call answers ``{"refused": sentence}`` for a user's mistake, and raises for anything else.
    """

    @cached_property
    def _multiticket_tickets(self) -> TicketCache:
        config = self.vllm_config  # type: ignore[attr-defined]
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        return TicketCache(model, vllm_ranks(), config.model_config.dtype, incompatibility(config))

    def multiticket_load(self, name: str, path: str) -> dict[str, Any]:
        """`TicketCache.load`."""
        return self._multiticket(lambda cache: cache.load(name, path))

    def multiticket_use(self, name: str | None) -> dict[str, Any]:
        """`TicketCache.use`."""
        return self._multiticket(lambda cache: cache.use(name))

    def multiticket_drop(self, name: str) -> dict[str, Any]:
        """`TicketCache.drop`."""
        return self._multiticket(lambda cache: cache.drop(name))

    def _multiticket(self, call: Any) -> dict[str, Any]:
        try:
            return call(self._multiticket_tickets) or {}
        except ValueError as error:
            return {"refused": str(error)}
