"""How much training data is in the engine at once: what is beyond it waits here, in turn, and can say why."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Capacity:
    """Lets in ``limit`` bytes of requests; one that is larger goes in alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._waiting: dict[str, asyncio.Event] = {}  # by request id, the first to go in first

    @asynccontextmanager
    async def enter(self, request_id: str, size: int) -> AsyncIterator[None]:
        """Be inside for the time of a ``with`` block, once there is room and it is one's turn."""
        if self._waiting or not self._fits(size):
            await self._turn(request_id, size)
        self._inside += size
        self._let_in()
        try:
            yield
        finally:
            self._inside -= size
            self._let_in()

    def why(self, request_id: str) -> str | None:
        """Return why a request waits, None when it does not."""
        if request_id not in self._waiting:
            return None
        before = list(self._waiting).index(request_id)
        return f"{self._inside >> 20} MB of training data are being worked on, and {before} other calls wait before it"

    async def _turn(self, request_id: str, size: int) -> None:
        turn = self._waiting[request_id] = asyncio.Event()
        try:
            while next(iter(self._waiting)) != request_id or not self._fits(size):
                turn.clear()
                await turn.wait()
        finally:
            del self._waiting[request_id]

    def _fits(self, size: int) -> bool:
        return not self._inside or self._inside + size <= self._limit

    def _let_in(self) -> None:
        if first := next(iter(self._waiting), None):
            self._waiting[first].set()
