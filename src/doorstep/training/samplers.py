"""Sampling sessions and where their weights are: the base, a checkpoint, or a model as it was at an unnamed save.

Sampling sessions from checkpoints outlive the process; unnamed saves belong to a model that does not, so they go
with it. Of those a snapshot stays as it is, and all ``inflight`` ones of a model follow its newest such save.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from doorstep.engine.api import Engine
from doorstep.errors import NotFound, UsageError
from doorstep.training.adapters import SamplerAdapters
from doorstep.training.paths import Kind, TinkerPath, parse, split_run_id
from doorstep.training.registry import Registry, Sampler, SavedCheckpoint, TrainingRun


class _Unnamed(msgspec.Struct, frozen=True):
    """An unnamed save's sampling session; ``adapter`` is None for the newest that is published of the run."""

    sampler: Sampler
    run_id: str
    adapter: str | None


class Samplers:
    """The sampling sessions of one service. ``unnamed`` is a folder of ours, emptied now."""

    def __init__(
        self, registry: Registry, engine: Engine, base_digest: str, adapters: SamplerAdapters, unnamed: Path
    ) -> None:
        self._registry = registry
        self._base_digest = base_digest
        self._engine = engine
        self._adapters = adapters
        self._folder = unnamed
        self._unnamed: dict[str, _Unnamed] = {}
        self._published: dict[str, str] = {}  # adapter by run
        self._publications = 0
        shutil.rmtree(unnamed, ignore_errors=True)
        unnamed.mkdir(parents=True)

    async def create(self, session_id: str, number: int, path: str | None, base: str, tenant: str) -> str:
        """Begin to sample from a checkpoint (or the base, None); return the sampling session's id."""
        if path is not None:
            self.checkpoint(parse(path), tenant)
        sampler_id = sampler_id_of(session_id, number)
        sampler = Sampler(sampler_id=sampler_id, session_id=session_id, path=path, base=base)
        await asyncio.to_thread(self._registry.put_sampler, sampler)
        return sampler_id

    async def snapshot(self, run: TrainingRun, number: int) -> str:
        """Begin to sample from a model as it is now; return the sampling session's id."""
        session_id, _ = split_run_id(run.run_id)
        sampler_id = sampler_id_of(session_id, number)
        await self._copy(run.run_id, sampler_id)
        self._note(sampler_id, run, sampler_id)
        return sampler_id

    async def publish(self, run: TrainingRun, number: int) -> str:
        """Have all ``inflight`` sampling sessions of a model, and a new one, sample from it as it is now."""
        session_id, _ = split_run_id(run.run_id)
        self._publications += 1
        adapter = f"{run.run_id}:inflight:{self._publications}"
        await self._copy(run.run_id, adapter)
        before = self._published.get(run.run_id)
        self._published[run.run_id] = adapter
        if before:
            await self._discard(before)
        sampler_id = sampler_id_of(session_id, number)
        self._note(sampler_id, run, None)
        return sampler_id

    def get(self, sampler_id: str, tenant: str) -> Sampler:
        """Return a tenant's sampling session; one from an unnamed save has no path."""
        if unnamed := self._unnamed.get(sampler_id):
            self._registry.session(unnamed.sampler.session_id, tenant)
            return unnamed.sampler
        with suppress(NotFound):
            return self._registry.sampler(sampler_id, tenant)
        raise NotFound(
            f"there is no sampling session {sampler_id} here. Weights that were saved without a name end with their "
            "session, with the engine or with the server; save them by name to keep them."
        )

    @asynccontextmanager
    async def weights(self, sampler_id: str, tenant: str) -> AsyncIterator[str | None]:
        """Have the engine hold a sampling session's weights; give the adapter's name, None for the base."""
        sampler = self.get(sampler_id, tenant)
        if unnamed := self._unnamed.get(sampler_id):
            adapter = unnamed.adapter or self._published[unnamed.run_id]
            folder = self._folder / adapter
        elif sampler.path is None:
            yield None
            return
        else:
            saved = self.checkpoint(parse(sampler.path), tenant)
            adapter, folder = _adapter_name(saved), self._registry.folder(saved)
        async with self._adapters.hold(adapter, folder):
            yield adapter

    async def adapter_for(self, path: TinkerPath, tenant: str | None) -> str:
        """Have the engine hold a checkpoint that a tenant may read; return the adapter's name."""
        saved = self.checkpoint(path, tenant)
        async with self._adapters.hold(_adapter_name(saved), self._registry.folder(saved)):
            return _adapter_name(saved)

    def checkpoint(self, path: TinkerPath, tenant: str | None) -> SavedCheckpoint:
        """Return a checkpoint that a tenant may read; UsageError when it is of another base, or to be taken away."""
        saved, run = self._registry.checkpoint(path, tenant), self._registry.run(path.run_id, None)
        if path.kind is Kind.EXTERNAL:
            raise UsageError(f"{path} is to be taken away; give a path of kind weights or sampler_weights")
        if run.base_digest != self._base_digest:
            raise UsageError(f"{path} was trained on other weights, {run.base}; serve that model to go on from it")
        return saved

    async def delete(self, path: TinkerPath) -> None:
        """Delete a checkpoint from disk and from the engine."""
        saved = await asyncio.to_thread(self._registry.remove_checkpoint, path)
        await self._adapters.drop(_adapter_name(saved))

    async def release(self, session_id: str) -> None:
        """Let a session's unnamed samplers go."""
        mine = [sampler_id for sampler_id in self._unnamed if sampler_id.startswith(f"{session_id}:")]
        adapters = [adapter for sampler_id in mine if (adapter := self._unnamed.pop(sampler_id).adapter)]
        runs = [run_id for run_id in self._published if run_id.startswith(f"{session_id}:")]
        for adapter in adapters + [self._published.pop(run_id) for run_id in runs]:
            await self._discard(adapter)

    def forget(self) -> None:
        """Let go of what only the engine had, for it has died; what is on disk is read again."""
        lost = self._adapters.forget()
        for sampler_id, unnamed in list(self._unnamed.items()):
            if (unnamed.adapter or self._published[unnamed.run_id]) in lost:
                del self._unnamed[sampler_id]
        self._published = {run_id: adapter for run_id, adapter in self._published.items() if adapter not in lost}

    async def close(self) -> None:
        """Let the adapters come to rest."""
        await self._adapters.close()

    async def _copy(self, run_id: str, adapter: str) -> None:
        await self._adapters.adopt(adapter, self._engine.copy_adapter(run_id, adapter), self._folder / adapter)

    async def _discard(self, adapter: str) -> None:
        await self._adapters.drop(adapter)
        await asyncio.to_thread(shutil.rmtree, self._folder / adapter, ignore_errors=True)

    def _note(self, sampler_id: str, run: TrainingRun, adapter: str | None) -> None:
        session_id, _ = split_run_id(run.run_id)
        sampler = Sampler(sampler_id=sampler_id, session_id=session_id, path=None, base=run.base)
        self._unnamed[sampler_id] = _Unnamed(sampler, run.run_id, adapter)


def sampler_id_of(session_id: str, number: int) -> str:
    """Return the id of a session's ``number``-th sampling session."""
    return f"{session_id}:sample:{number}"


def _adapter_name(saved: SavedCheckpoint) -> str:
    """Name the adapter by its save: a path whose checkpoint is replaced is then another adapter."""
    return f"{saved.path}@{saved.folder}"
