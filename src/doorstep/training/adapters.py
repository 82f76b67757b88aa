"""Which saved adapters the engine holds for sampling: those used last, each loaded from its folder when asked for."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from doorstep.engine.api import Engine


class SamplerAdapters:
    """At most ``limit`` adapters, the least recently used makes room; one that is sampling stays."""

    def __init__(self, engine: Engine, limit: int) -> None:
        self._engine = engine
        self._limit = limit
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._busy: Counter[str] = Counter()
        self._lock = asyncio.Lock()

    async def ensure(self, adapter: str, folder: Path) -> None:
        """Have the engine hold ``adapter``, with the weights in ``folder``."""
        if adapter in self._loaded:
            self._loaded.move_to_end(adapter)
            return
        async with self._lock:
            if adapter in self._loaded:
                return
            await self._make_room()
            await self._engine.load(adapter, str(folder), optimizer=False)
            self._loaded[adapter] = None

    @asynccontextmanager
    async def hold(self, adapter: str, folder: Path) -> AsyncIterator[None]:
        """Keep ``adapter`` in the engine for the time of a ``with`` block."""
        self._busy[adapter] += 1
        try:
            await self.ensure(adapter, folder)
            yield
        finally:
            self._busy[adapter] -= 1

    async def drop(self, adapter: str) -> None:
        """Take ``adapter`` out of the engine, if it is there."""
        async with self._lock:
            if adapter in self._loaded:
                del self._loaded[adapter]
                await self._engine.drop_adapter(adapter)

    async def _make_room(self) -> None:
        for adapter in [name for name in self._loaded if not self._busy[name]]:
            if len(self._loaded) < self._limit:
                return
            del self._loaded[adapter]
            await self._engine.drop_adapter(adapter)
