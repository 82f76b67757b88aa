"""Which adapters the engine holds for sampling: those used last. The others wait on disk until they are asked for.

An adapter's folder may be a checkpoint's, or one that does not exist yet: a snapshot is made in memory and is written
only when it has to make room.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from doorstep.engine.api import Engine
from doorstep.errors import EngineError, EngineUnavailable

log = logging.getLogger(__name__)


class _Slot:
    """One adapter. The lock is held while it goes in or out, so that others' loads need not wait for that."""

    def __init__(self, folder: Path, on_disk: bool) -> None:
        self.folder = folder
        self.on_disk = on_disk
        self.loaded = False
        self.size = 0  # bytes in memory; 0 until it was asked for
        self.busy = 0
        self.doomed = False  # nobody asks for it again; it goes when nobody samples from it any more
        self.lock = asyncio.Lock()


class SamplerAdapters:
    """Adapters of ``limit`` bytes together, the least recently used makes room; one that is sampling stays."""

    def __init__(self, engine: Engine, limit: int) -> None:
        self._engine = engine
        self._limit = limit
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._tidying: asyncio.Task[None] | None = None
        self._untidy = False

    async def adopt(self, adapter: str, made: Awaitable[None], folder: Path) -> None:
        """Take over an adapter that ``made`` makes in the engine; ``folder`` is where it may be written."""
        slot = self._slots[adapter] = _Slot(folder, on_disk=False)
        async with slot.lock:
            try:
                await made
            except EngineError:
                del self._slots[adapter]
                raise
            slot.loaded = True
        self._tidy_soon()

    @asynccontextmanager
    async def hold(self, adapter: str, folder: Path) -> AsyncIterator[None]:
        """Have the engine hold ``adapter``, loaded from ``folder`` if need be, for the time of a ``with`` block."""
        slot = self._slots.setdefault(adapter, _Slot(folder, on_disk=True))
        self._slots.move_to_end(adapter)
        slot.busy += 1
        try:
            async with slot.lock:
                if not slot.loaded:
                    await self._engine.load(adapter, str(slot.folder), optimizer=False)
                    slot.loaded = True
                    self._tidy_soon()
            yield
        finally:
            slot.busy -= 1
            if not slot.busy and (slot.doomed or not slot.loaded):
                await self._let_go(adapter, slot)

    async def drop(self, adapter: str) -> None:
        """Have ``adapter`` out of the engine as soon as nobody samples from it."""
        slot = self._slots.get(adapter)
        if slot is None:
            return
        slot.doomed = True
        if not slot.busy:
            async with slot.lock:
                await self._let_go(adapter, slot)

    def forget(self) -> set[str]:
        """Note that the engine lost all that it held; return the adapters that are not on disk, and so nowhere."""
        lost = {adapter for adapter, slot in self._slots.items() if not slot.on_disk}
        for slot in self._slots.values():
            slot.loaded = False
        for adapter in lost:
            del self._slots[adapter]
        return lost

    async def close(self) -> None:
        """Wait for what is being tidied."""
        if self._tidying:
            await self._tidying

    def _tidy_soon(self) -> None:
        """Make room in a while: what is new is sampled from at once, and waits for nothing."""
        self._untidy = True
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.get_running_loop().create_task(self._tidy())

    async def _tidy(self) -> None:
        while self._untidy:
            self._untidy = False
            await self._weigh()
            await self._make_room()

    async def _weigh(self) -> None:
        for adapter, slot in list(self._slots.items()):
            if slot.loaded and not slot.size:
                with suppress(EngineError):  # it has gone meanwhile
                    slot.size = await self._engine.adapter_size(adapter)

    async def _make_room(self) -> None:
        for adapter, slot in list(self._slots.items()):
            if sum(each.size for each in self._slots.values() if each.loaded) <= self._limit:
                return
            if slot.loaded and not slot.busy:
                async with slot.lock:
                    await self._put_away(adapter, slot)

    async def _put_away(self, adapter: str, slot: _Slot) -> None:
        if not slot.on_disk and not slot.doomed:
            try:
                await self._engine.save(adapter, str(slot.folder), optimizer=False)
            except EngineError as error:
                log.warning("%s stays in memory, for it cannot be written: %s", adapter, error)
                return
            slot.on_disk = True
        if not slot.busy:  # nobody came for it meanwhile
            await self._let_go(adapter, slot)

    async def _let_go(self, adapter: str, slot: _Slot) -> None:
        if self._slots.get(adapter) is slot:
            del self._slots[adapter]
        if slot.loaded:
            slot.loaded = False
            with suppress(EngineUnavailable):  # what has died holds nothing
                await self._engine.drop_adapter(adapter)
