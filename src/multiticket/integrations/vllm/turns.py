"""Requests grouped by ticket: one group at a time, and a swap only when nothing of the last group is under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Turns:
    """Lets in the requests of one ticket at a time. Belongs to one event loop.

    A turn begins with a swap and lets in all that wait for its ticket. Others of that ticket may follow for as long
    as nobody waits for another one; then the turn ends with its last request, and the next is of the ticket whose
    request has waited longest. So no group waits for more than one turn of each other group.
    """

    def __init__(self, swap: Callable[[str | None], Awaitable[None]]) -> None:
        """``swap(name)`` writes a ticket's weights, or for None the base's; it runs while no request does."""
        self._swap = swap
        self._waiting: dict[str | None, deque[asyncio.Future[None]]] = {}
        """By ticket, in the order in which each group's first request came."""
        self._inside = 0
        self._swapping: asyncio.Task[None] | None = None
        self.serving: str | None = None
        """The ticket in the weights; None for the base."""
        self.known = True
        """Whether `serving` is certain: not after a swap that failed."""

    @asynccontextmanager
    async def turn(self, name: str | None) -> AsyncIterator[None]:
        """Within, the weights are those of ``name``. Raises what the swap to it raised."""
        await self._enter(name)
        try:
            yield
        finally:
            self._inside -= 1
            self._advance()

    async def _enter(self, name: str | None) -> None:
        if self.known and name == self.serving and self._swapping is None and not self._waiting:
            self._inside += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, deque()).append(place)
        self._advance()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._inside -= 1  # let in at the moment it gave up
            self._forget(name, place)
            self._advance()
            raise

    def _forget(self, name: str | None, place: asyncio.Future[None]) -> None:
        group = self._waiting.get(name)
        if group is not None and place in group:
            group.remove(place)
            if not group:
                del self._waiting[name]

    def _advance(self) -> None:
        """Begin the next turn, where one is due."""
        if self._waiting and not self._inside and self._swapping is None:
            self._swapping = asyncio.create_task(self._begin(next(iter(self._waiting))))

    async def _begin(self, name: str | None) -> None:
        failed: Exception | None = None
        try:
            if not (self.known and name == self.serving):
                self.known = False
                await self._swap(name)
                self.serving, self.known = name, True
        except Exception as error:
            failed = error
        self._swapping = None
        for place in self._waiting.pop(name, ()):
            if place.done():
                continue
            if failed is None:
                self._inside += 1
                place.set_result(None)
            else:
                place.set_exception(failed)
        self._advance()
