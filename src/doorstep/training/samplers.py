"""Sampling sessions and where their weights are: the base, a checkpoint, or an unnamed save that ends with its session.

Sampling sessions from checkpoints outlive the process; unnamed saves belong to a model that does not, so they go
with it.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from doorstep.errors import NotFound
from doorstep.training.adapters import SamplerAdapters
from doorstep.training.paths import TinkerPath, parse
from doorstep.training.registry import Registry, Sampler, SavedCheckpoint


class Samplers:
    """The sampling sessions of one service. ``unnamed`` is a folder of ours, emptied now."""

    def __init__(self, registry: Registry, adapters: SamplerAdapters, unnamed: Path) -> None:
        self._registry = registry
        self._adapters = adapters
        self._unnamed = unnamed
        self._folders: dict[str, Path] = {}
        shutil.rmtree(unnamed, ignore_errors=True)

    async def create(self, session_id: str, number: int, path: str | None) -> str:
        """Begin to sample from a checkpoint (or the base, None); return the sampling session's id."""
        if path is not None:
            self._registry.checkpoint(parse(path))
        sampler = Sampler(sampler_id=sampler_id_of(session_id, number), session_id=session_id, path=path)
        await asyncio.to_thread(self._registry.put_sampler, sampler)
        return sampler.sampler_id

    def new_unnamed(self, session_id: str, number: int) -> tuple[str, Path]:
        """Return the id of a sampling session without a checkpoint, and the folder to write its weights into."""
        self._unnamed.mkdir(parents=True, exist_ok=True)
        sampler_id = sampler_id_of(session_id, number)
        return sampler_id, self._unnamed / sampler_id

    def add_unnamed(self, sampler_id: str, folder: Path) -> None:
        """Note that an unnamed sampler's weights are there."""
        self._folders[sampler_id] = folder

    def get(self, sampler_id: str) -> Sampler:
        """Return a sampling session; one from an unnamed save has no path."""
        if sampler_id in self._folders:
            return Sampler(sampler_id=sampler_id, session_id=sampler_id.partition(":")[0], path=None)
        if known := self._registry.sampler(sampler_id):
            return known
        raise NotFound(
            f"sampling session {sampler_id} is not known here. Weights that were saved without a name end with their "
            "session or with the server; save them by name to keep them."
        )

    @asynccontextmanager
    async def weights(self, sampler_id: str) -> AsyncIterator[str | None]:
        """Have the engine hold a sampling session's weights; give the adapter's name, None for the base."""
        sampler = self.get(sampler_id)
        if folder := self._folders.get(sampler_id):
            adapter = sampler_id
        elif sampler.path is None:
            yield None
            return
        else:
            saved = self._registry.checkpoint(parse(sampler.path))
            adapter, folder = _adapter_name(saved), self._registry.folder(saved)
        async with self._adapters.hold(adapter, folder):
            yield adapter

    async def adapter_for(self, path: TinkerPath) -> str:
        """Have the engine hold a checkpoint; return the adapter's name."""
        saved = self._registry.checkpoint(path)
        await self._adapters.ensure(_adapter_name(saved), self._registry.folder(saved))
        return _adapter_name(saved)

    async def delete(self, path: TinkerPath) -> None:
        """Delete a checkpoint from disk and from the engine."""
        saved = await asyncio.to_thread(self._registry.remove_checkpoint, path)
        await self._adapters.drop(_adapter_name(saved))

    async def release(self, session_id: str) -> None:
        """Let a session's unnamed samplers go."""
        for sampler_id in [known for known in self._folders if known.startswith(f"{session_id}:")]:
            folder = self._folders.pop(sampler_id)
            await self._adapters.drop(sampler_id)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def sampler_id_of(session_id: str, number: int) -> str:
    """Return the id of a session's ``number``-th sampling session."""
    return f"{session_id}:sample:{number}"


def _adapter_name(saved: SavedCheckpoint) -> str:
    """Name the adapter by its save: a path whose checkpoint is replaced is then another adapter."""
    return f"{saved.path}@{saved.folder}"
