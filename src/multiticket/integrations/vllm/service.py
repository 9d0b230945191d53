"""The tickets of one vLLM server: which there are, whose turn it is, and the swap between two turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from multiticket.integrations.vllm.turns import Turns


class UnknownTicket(ValueError):
    """No ticket of that name is held."""


class TicketService:
    """Belongs to the server's event loop."""

    def __init__(self, engine: Any, base_names: list[str]) -> None:
        """``engine``: vLLM's `EngineClient`, whose workers are `worker.TicketWorker`; ``base_names``: the base's."""
        self._engine = engine
        self.base_names = base_names
        self.tickets: dict[str, dict[str, Any]] = {}
        """What is told of each ticket, by name."""
        self.default: str | None = None
        """The ticket for requests that name no model; None for the base."""
        self.swaps = 0
        self.swap_ms: float | None = None
        """How long the last swap took, with emptying the prefix cache."""
        self._turns = Turns(self._swap)
        self._changing = asyncio.Lock()

    def ticket_of(self, model: str | None) -> str | None:
        """The ticket that a request's ``model`` names; None for the base. Raises UnknownTicket."""
        if model is None or model == "":
            return self.default
        if model in self.base_names:
            return None
        if model not in self.tickets:
            raise UnknownTicket(f"There is no model or ticket {model!r}; there are {', '.join(self.names)}.")
        return model

    @property
    def names(self) -> list[str]:
        """All that a request may ask for: the base's names, then the tickets'."""
        return [*self.base_names, *self.tickets]

    @asynccontextmanager
    async def turn(self, ticket: str | None) -> AsyncIterator[None]:
        """Within, the engine answers with this ticket's weights (None: the base's).

        Raises ValueError where the ticket was dropped meanwhile.
        """
        async with self._turns.turn(ticket):
            yield

    async def load(self, name: str, path: str) -> dict[str, Any]:
        """Hold another ticket. Raises ValueError for a name that is taken, a broken file or another base.

        The base gets a turn for it, since its values are read; requests for it go on.
        """
        if not name or "/" in name or not name.isprintable():
            raise ValueError(
                f"{name!r} cannot name a ticket: the name is part of a URL and must not contain a slash."
            )
        async with self._changing:
            if name in self.names:
                raise ValueError(f"There is a model or ticket {name!r} already; drop it first.")
            async with self._turns.turn(None):
                facts = await self._call("multiticket_load", name, path)
            self.tickets[name] = {"file": path, **facts}
            return self.tickets[name]

    async def drop(self, name: str) -> None:
        """Forget a ticket: new requests for it are refused at once, those under way end. Raises UnknownTicket."""
        async with self._changing:
            if name not in self.tickets:
                raise UnknownTicket(
                    f"There is no ticket {name!r}; there are {', '.join(self.tickets) or 'none'}."
                )
            del self.tickets[name]
            if self.default == name:
                self.default = None
            async with self._turns.turn(None):
                await self._call("multiticket_drop", name)

    async def use(self, model: str | None) -> float:
        """Make this the model of requests that name none, and swap it in; milliseconds until it was in."""
        ticket = None if model is None else self.ticket_of(model)
        began = time.perf_counter()
        async with self._turns.turn(ticket):
            self.default = ticket
        return 1e3 * (time.perf_counter() - began)

    def state(self) -> dict[str, Any]:
        """What is served, as plain JSON."""
        return {
            "base": self.base_names,
            "tickets": self.tickets,
            "default": self.default,
            "serving": self._turns.serving if self._turns.known else "unknown: the last swap failed",
            "swaps": self.swaps,
            "swap_ms": self.swap_ms,
        }

    async def _swap(self, name: str | None) -> None:
        """Nothing runs for us now. What left us without an answer (a client that hung up) may still run in the
        engine, so it is waited for; and nothing that the last weights computed is used again."""
        began = time.perf_counter()
        await self._engine.pause_generation(mode="wait", clear_cache=True)
        try:
            await self._call("multiticket_use", name)
        finally:
            await self._engine.resume_generation()
        self.swaps += 1
        self.swap_ms = 1e3 * (time.perf_counter() - began)

    async def _call(self, method: str, *args: Any) -> dict[str, Any]:
        answers = await self._engine.collective_rpc(method, args=args)
        for answer in answers:
            if "refused" in answer:
                raise ValueError(answer["refused"])
        return answers[0]
