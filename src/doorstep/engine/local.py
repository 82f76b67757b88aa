"""The engine in this process: asyncio in front, one worker thread behind that owns every tensor.

Operations on one adapter wait in its lane and take effect in order. The worker goes round: a slice of each lane, then
tokens for everything that samples; so neither long training calls nor long answers hold up the others. How work
interleaves never changes a result.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from doorstep.engine import checkpoint
from doorstep.engine.adapter import Adapter
from doorstep.engine.api import (
    AdamParams,
    Checkpoint,
    Finished,
    Image,
    LoraSpec,
    Loss,
    ModelInfo,
    SampleParams,
    ScoreParams,
    Scores,
    Token,
    TrainResult,
    TrainRow,
)
from doorstep.engine.native import trainer
from doorstep.engine.native.base import Base, load_base
from doorstep.engine.native.decoder import Weights
from doorstep.engine.native.sampler import Batch
from doorstep.engine.requests import Request, check_request, check_tokens
from doorstep.errors import EngineError, EngineUnavailable

SLICE_S = 0.05  # of one lane before everything that samples gets a token
MAX_ROWS = 512  # samples that decode at once, all adapters together; others wait

T = TypeVar("T")
Work = Generator[None, None, T]
Finish = Callable[[Any, EngineError | None], None]


class LocalEngine:
    """An ``Engine`` on torch in fp32 on the CPU. Make it by ``await LocalEngine.start(…)``; ``close`` it."""

    def __init__(self, worker: "_Worker", base: Base) -> None:
        self._worker = worker
        self._base = base

    @classmethod
    async def start(cls, folder: Path, name: str, threads: int = 1) -> "LocalEngine":
        """Load a model folder. ``threads`` are those of a matrix product; results hold for one number of threads."""
        base = await asyncio.to_thread(load_base, folder, name)
        worker = _Worker(base, threads)
        worker.start()
        return cls(worker, base)

    async def info(self) -> ModelInfo:
        """Describe the base model."""
        return self._base.info

    async def create_adapter(self, adapter: str, spec: LoraSpec) -> None:
        """Make a fresh adapter."""
        if not 1 <= spec.rank <= 512 or not spec.alpha > 0:
            raise EngineError(f"rank is {spec.rank}, alpha {spec.alpha}; rank must be 1 to 512, alpha above 0")
        if not (spec.train_attn or spec.train_mlp or spec.train_unembed):
            raise EngineError("the adapter would train nothing; set train_attn, train_mlp or train_unembed")
        await self._do(adapter, self._worker.create(adapter, spec))

    async def copy_adapter(self, source: str, target: str) -> None:
        """Make a copy of what an adapter is now."""
        await self._do(source, self._worker.copy(source, target))

    async def measure(self, images: Sequence[bytes]) -> list[int]:
        """Return how many tokens each image takes."""
        raise EngineError(f"{self._base.info.name} takes no images")

    async def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter; what it is sampling goes on to its end."""
        await self._do(adapter, self._worker.drop(adapter))

    async def forward_backward(
        self, adapter: str, rows: list[TrainRow], loss: Loss, forward_only: bool = False
    ) -> TrainResult:
        """Add a loss's gradients to those of the adapter since its last step."""
        trainer.check_rows(rows, loss, self._base.info)
        return await self._do(adapter, self._worker.forward_backward(adapter, rows, loss, forward_only))

    async def optim_step(self, adapter: str, params: AdamParams) -> dict[str, float]:
        """Step the optimiser; return ``step`` and ``grad_norm`` (before clipping)."""
        return await self._do(adapter, self._worker.optim_step(adapter, params))

    async def save(self, adapter: str, folder: str, optimizer: bool) -> Checkpoint:
        """Write the adapter in PEFT's format, atomically."""
        return await self._do(adapter, self._worker.save(adapter, Path(folder), optimizer))

    async def load(self, adapter: str, folder: str, optimizer: bool) -> LoraSpec:
        """Make or replace an adapter from a saved folder."""
        return await self._do(adapter, self._worker.load(adapter, Path(folder), optimizer))

    async def score(
        self,
        adapter: str | None,
        tokens: list[int],
        params: ScoreParams = ScoreParams(),  # noqa: B008
        images: Sequence[Image] = (),
    ) -> Scores:
        """Return each token's log-probability given those before it."""
        if not 1 <= len(tokens) <= self._base.info.max_context:
            raise EngineError(f"{len(tokens)} tokens to score; the model takes 1 to {self._base.info.max_context}")
        check_tokens("the text", tokens, self._base.info)
        return await self._do(adapter, self._worker.score(adapter, tokens))

    async def sample(
        self, adapter: str | None, prompt: list[int], params: SampleParams, n: int = 1, images: Sequence[Image] = ()
    ) -> AsyncIterator[Token | Finished]:
        """Stream ``n`` samples of a prompt; closing the iterator cancels."""
        steps = self.sample_steps(adapter, prompt, params, n, images)
        try:
            async for events in steps:
                for event in events:
                    yield event
        finally:
            await steps.aclose()

    async def sample_steps(
        self, adapter: str | None, prompt: list[int], params: SampleParams, n: int = 1, images: Sequence[Image] = ()
    ) -> AsyncGenerator[list[Token | Finished], None]:
        """Stream ``n`` samples of a prompt, everything of one step together."""
        check_request(prompt, params, n, self._base.info)
        arrived: asyncio.Queue[list[Token | Finished] | EngineError] = asyncio.Queue()
        emit = partial(_call_soon, asyncio.get_running_loop(), arrived.put_nowait)
        request = Request(prompt, params, n, images, self._base, emit)

        def admitted(_: None, error: EngineError | None) -> None:
            if error is not None:
                emit(error)

        self._worker.put(adapter, self._worker.sample(adapter, request), admitted)
        finished = 0
        try:
            while finished < n:
                events = await arrived.get()
                if isinstance(events, EngineError):
                    raise events
                finished += sum(isinstance(event, Finished) for event in events)
                yield events
        finally:
            request.cancelled = True

    async def close(self) -> None:
        """Stop the worker; operations that wait fail with EngineUnavailable."""
        self._worker.stop()
        await asyncio.to_thread(self._worker.join)

    async def _do(self, adapter: str | None, work: Work[T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._worker.put(adapter, work, partial(_call_soon, loop, partial(_settle, future)))
        return await future


class _Held:
    """An adapter, what it is merged into, and the batch that samples from that; both until its weights change."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._weights: Weights | None = None
        self._batch: Batch | None = None

    def weights(self, base: Base) -> Weights:
        if self._weights is None:
            self._weights = self.adapter.merge(base.weights)
        return self._weights

    def batch(self, base: Base) -> Batch:
        if self._batch is None:
            self._batch = Batch(base, self.weights(base))
        return self._batch

    def changed(self) -> None:
        self._weights = self._batch = None


class _Worker(threading.Thread):
    """The thread that owns the tensors. Its public generators are operations; each ``yield`` ends a slice."""

    def __init__(self, base: Base, threads: int) -> None:
        super().__init__(name="engine", daemon=True)
        self._base = base
        self._threads = threads
        self._inbox: queue.SimpleQueue[tuple[str | None, Work[Any], Finish] | None] = queue.SimpleQueue()
        self._lanes: dict[str | None, deque[tuple[Work[Any], Finish]]] = {}
        self._held: dict[str, _Held] = {}
        self._plain = Batch(base, base.weights)
        self._batches: list[Batch] = []
        self._stopped = False

    def put(self, adapter: str | None, work: Work[Any], finish: Finish) -> None:
        """Queue an operation; ``finish`` is called on this thread with its result or error."""
        if self._stopped:
            finish(None, EngineUnavailable("the engine was closed"))
        else:
            self._inbox.put((adapter, work, finish))

    def stop(self) -> None:
        """End the thread after the slice that runs."""
        self._stopped = True
        self._inbox.put(None)

    def run(self) -> None:
        """Go round until stopped."""
        torch.set_num_threads(self._threads)
        while not self._stopped:
            self._receive()
            paused = sum(self._advance(name) for name in list(self._lanes))
            until = time.monotonic() + paused  # as long again for sampling, so that neither starves
            self._sample()
            while self._batches and not self._stopped and time.monotonic() < until:
                self._sample()
        self._fail_all(EngineUnavailable("the engine was closed"))

    # Operations

    def create(self, name: str, spec: LoraSpec) -> Work[None]:
        if name in self._held:
            raise EngineError(f"there is an adapter {name} already; drop it first")
        adapter = Adapter(spec, self._base.shape)
        adapter.initialise()
        self._held[name] = _Held(adapter)
        yield from ()

    def copy(self, source: str, target: str) -> Work[None]:
        held = self._find(source)
        copied = Adapter(held.adapter.spec, self._base.shape)
        copied.flat.copy_(held.adapter.flat)
        self._held[target] = _Held(copied)
        yield from ()

    def drop(self, name: str) -> Work[None]:
        self._find(name)
        del self._held[name]
        yield from ()

    def forward_backward(self, name: str, rows: list[TrainRow], loss: Loss, forward_only: bool) -> Work[TrainResult]:
        held = self._find(name)
        weights = held.weights(self._base)
        return (yield from trainer.forward_backward(self._base, held.adapter, weights, rows, loss, forward_only))

    def optim_step(self, name: str, params: AdamParams) -> Work[dict[str, float]]:
        held = self._find(name)
        metrics = trainer.optim_step(held.adapter, params)
        held.changed()
        yield from ()
        return metrics

    def save(self, name: str, folder: Path, optimizer: bool) -> Work[Checkpoint]:
        yield from ()
        return checkpoint.save(self._find(name).adapter, self._base, folder, optimizer)

    def load(self, name: str, folder: Path, optimizer: bool) -> Work[LoraSpec]:
        held = _Held(checkpoint.load(self._base, folder, optimizer))
        self._held[name] = held
        yield from ()
        return held.adapter.spec

    def score(self, name: str | None, tokens: list[int]) -> Work[Scores]:
        yield from ()
        weights = self._base.weights if name is None else self._find(name).weights(self._base)
        return trainer.score(self._base, weights, tokens)

    def sample(self, name: str | None, request: Request) -> Work[None]:
        while sum(batch.rows for batch in self._batches) > MAX_ROWS - len(request.samples) and self._batches:
            yield
        batch = self._plain if name is None else self._find(name).batch(self._base)
        if not request.cancelled:
            batch.add(request)
            if batch not in self._batches:
                self._batches.append(batch)

    # How the above is run

    def _find(self, name: str) -> _Held:
        if name not in self._held:
            raise EngineError(f"there is no adapter {name}; create or load it first")
        return self._held[name]

    def _receive(self) -> None:
        """Sort what has arrived into lanes; wait for it when there is nothing else to do."""
        idle = not self._lanes and not self._batches
        while idle or not self._inbox.empty():
            item = self._inbox.get()
            if item is None:
                return
            name, work, finish = item
            self._lanes.setdefault(name, deque()).append((work, finish))
            idle = False

    def _advance(self, name: str | None) -> float:
        """Run a lane until an operation pauses, or its time is up. Return the seconds of what paused."""
        lane, began = self._lanes[name], time.monotonic()
        while lane and time.monotonic() < began + SLICE_S:
            work, finish = lane[0]
            try:
                next(work)
                return time.monotonic() - began
            except StopIteration as end:
                finish(end.value, None)
            except Exception as error:
                finish(None, _engine_error(error))
            lane.popleft()
        if not lane:
            del self._lanes[name]
        return 0.0

    def _sample(self) -> None:
        for batch in self._batches:
            try:
                batch.step()
            except Exception as error:
                for request in batch.requests():
                    request.cancelled = True
                    request.emit(_engine_error(error))
        self._batches = [batch for batch in self._batches if batch.rows]

    def _fail_all(self, error: EngineError) -> None:
        while not self._inbox.empty():
            if (item := self._inbox.get()) is not None:
                item[2](None, error)
        for lane in self._lanes.values():
            for _, finish in lane:
                finish(None, error)
        for batch in self._batches:
            for request in batch.requests():
                request.emit(error)


def _engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineError(f"the engine failed: {type(error).__name__}: {error}", "server")


def _settle(future: "asyncio.Future[Any]", value: Any, error: EngineError | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *values: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *values)
