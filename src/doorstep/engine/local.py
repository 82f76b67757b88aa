"""The engine in this process: asyncio in front, one worker thread behind that owns every tensor.

Operations on one adapter wait in its lane and take effect in order. The worker goes round: what is at the lanes' heads,
a pass of training for all calls that came to a head together, then tokens for everything that samples; so neither long
training calls nor long answers hold up the others. How work interleaves never changes a result.
"""

import asyncio
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from doorstep.engine.adapter import MAX_RANK, Trained
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
from doorstep.engine.native.base import takes
from doorstep.engine.native.runtime import NativeRuntime
from doorstep.engine.requests import Request, check_request
from doorstep.engine.rows import check_images
from doorstep.engine.runtime import Runtime, Task
from doorstep.engine.scoring import check_score
from doorstep.engine.steps import optim_step
from doorstep.errors import EngineError, EngineUnavailable

GATHER_S = 0.001  # calls of several clients that come so close to each other are taken up together
SHARE = 750_000_000  # parameters times tokens for each thread; with less it waits longer than it works
USUAL = 64  # tokens that sampling and reading have at once, for the number of their threads
SLICE_S = 0.05  # of one lane before everything that samples gets a token
MAX_ROWS = 512  # samples that decode at once, all adapters together; others wait

T = TypeVar("T")
Work = Generator[None, None, T]
Finish = Callable[[Any, EngineError | None], None]


class LocalEngine:
    """An ``Engine`` on torch. Make it by ``await LocalEngine.start(…)``; ``close`` it."""

    def __init__(self, worker: "_Worker", runtime: Runtime[Any]) -> None:
        self._worker = worker
        self._runtime = runtime

    @classmethod
    async def start(
        cls, folder: Path, name: str, threads: int = 1, device: str = "cpu", nf4: bool = False
    ) -> "LocalEngine":
        """Load a model folder. ``threads`` are the most that share a product, 0 all cores; small models take one.

        ``device`` is ``cpu`` (fp32), ``cuda`` (bf16), or ``auto``: CUDA where there is one. With ``nf4`` the base's
        matrices are kept in four bits a number.
        """
        runtime = await asyncio.to_thread(_runtime, folder, name, device, nf4)
        worker = _Worker(runtime, threads or os.cpu_count() or 1)
        worker.start()
        return cls(worker, runtime)

    async def info(self) -> ModelInfo:
        """Describe the base model."""
        return self._runtime.info

    async def create_adapter(self, adapter: str, spec: LoraSpec) -> None:
        """Make a fresh adapter."""
        if not 0 <= spec.rank <= MAX_RANK or not 0 < spec.alpha < math.inf:
            raise EngineError(f"rank is {spec.rank}, alpha {spec.alpha}; rank must be 0 to {MAX_RANK}, alpha above 0")
        if not (spec.train_attn or spec.train_mlp or spec.train_unembed):
            raise EngineError("the adapter would train nothing; set train_attn, train_mlp or train_unembed")
        await self._do(adapter, self._worker.create(adapter, spec))

    async def copy_adapter(self, source: str, target: str) -> None:
        """Make a copy of what an adapter is now."""
        await self._do(source, self._worker.copy(source, target))

    async def adapter_size(self, adapter: str) -> int:
        """Return how many bytes an adapter's numbers take in memory."""
        return await self._do(adapter, self._worker.size(adapter))

    async def measure(self, images: Sequence[bytes]) -> list[int]:
        """Return how many tokens each image takes."""
        return await asyncio.to_thread(self._runtime.measure, images)

    async def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter; what it is sampling goes on to its end."""
        await self._do(adapter, self._worker.drop(adapter))

    async def forward_backward(
        self, adapter: str, rows: list[TrainRow], loss: Loss, forward_only: bool = False
    ) -> TrainResult:
        """Add a loss's gradients to those of the adapter since its last step."""
        self._runtime.check(rows, loss)
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
        check_score(tokens, params, self._runtime.info)
        check_images(images, tokens, self._runtime.info)
        return await self._do(adapter, self._worker.score(adapter, tokens, params, images))

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
        check_request(prompt, params, n, self._runtime.info)
        check_images(images, prompt, self._runtime.info)
        arrived: asyncio.Queue[list[Token | Finished] | EngineError] = asyncio.Queue()
        emit = partial(_call_soon, asyncio.get_running_loop(), arrived.put_nowait)
        make = partial(Request, prompt, params, n, images, self._runtime, emit)
        request = make() if params.grammar is None else await asyncio.to_thread(make)  # compiling takes a while

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


def _runtime(folder: Path, name: str, device: str, nf4: bool) -> Runtime[Any]:
    """Load a model folder with the quickest runtime that takes it."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise EngineError(f"{folder} holds no model: it must have config.json and *.safetensors")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise EngineError("torch finds no CUDA device; set device to cpu or auto, or install torch for CUDA")
    if not nf4 and takes(folder):
        return NativeRuntime(folder, name, torch.device(device))
    from doorstep.engine.modules.runtime import ModulesRuntime  # slow to import, and seldom needed

    return ModulesRuntime(folder, name, torch.device(device), nf4)


class _Held:
    """An adapter, and what it computes with until its numbers change."""

    def __init__(self, runtime: Runtime[Any], adapter: Trained) -> None:
        self.adapter = adapter
        self._runtime = runtime
        self._weights: Any = None

    def weights(self) -> Any:
        if self._weights is None:
            self._weights = self._runtime.merged(self.adapter)
        return self._weights

    def copy(self) -> "_Held":
        copied = _Held(self._runtime, self.adapter.copy())
        copied._weights = self._weights
        return copied

    def changed(self) -> None:
        self._weights = None


class _Training(NamedTuple):
    """Tasks that are done together, with as many threads."""

    tasks: list[Task[Any]]
    threads: int
    work: Generator[None, None, None]


class _Worker(threading.Thread):
    """The thread that owns the tensors. Its public generators are operations; each ``yield`` ends a slice."""

    def __init__(self, runtime: Runtime[Any], threads: int) -> None:
        super().__init__(name="engine", daemon=True)
        self._runtime = runtime
        self._threads = threads
        self._inbox: queue.SimpleQueue[tuple[str | None, Work[Any], Finish] | None] = queue.SimpleQueue()
        self._lanes: dict[str | None, deque[tuple[Work[Any], Finish]]] = {}
        self._held: dict[str, _Held] = {}
        self._waiting: list[Task[Any]] = []
        self._training: list[_Training] = []
        self._sampler = runtime.sampler()
        self._admitting: deque[Request] = deque()  # at the heads of lanes, each waiting for room
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
        torch.set_num_threads(self._share(USUAL))
        while not self._stopped:
            self._receive()
            for name in list(self._lanes):
                self._advance(name)
            began = time.monotonic()
            self._train()
            until = 2 * time.monotonic() - began  # as long again for sampling, so that neither starves
            self._sample()
            while self._sampler.rows and not self._stopped and time.monotonic() < until:
                self._sample()
        self._fail_all(EngineUnavailable("the engine was closed"))

    # Operations

    def create(self, name: str, spec: LoraSpec) -> Work[None]:
        if name in self._held:
            raise EngineError(f"there is an adapter {name} already; drop it first")
        self._held[name] = _Held(self._runtime, self._runtime.adapter(spec))
        yield from ()

    def copy(self, source: str, target: str) -> Work[None]:
        self._held[target] = self._find(source).copy()
        yield from ()

    def size(self, name: str) -> Work[int]:
        yield from ()
        return self._find(name).adapter.flat.nbytes

    def drop(self, name: str) -> Work[None]:
        self._find(name)
        del self._held[name]
        yield from ()

    def forward_backward(self, name: str, rows: list[TrainRow], loss: Loss, forward_only: bool) -> Work[TrainResult]:
        held = self._find(name)
        task = Task(held.adapter, held.weights, rows, loss, forward_only)
        self._waiting.append(task)
        while task.done is None:
            yield
        if isinstance(task.done, EngineError):
            raise task.done
        return task.done

    def optim_step(self, name: str, params: AdamParams) -> Work[dict[str, float]]:
        held = self._find(name)
        metrics = optim_step(held.adapter, params)
        held.changed()
        yield from ()
        return metrics

    def save(self, name: str, folder: Path, optimizer: bool) -> Work[Checkpoint]:
        yield from ()
        return self._runtime.save(self._find(name).adapter, folder, optimizer)

    def load(self, name: str, folder: Path, optimizer: bool) -> Work[LoraSpec]:
        held = _Held(self._runtime, self._runtime.load(folder, optimizer))
        self._held[name] = held
        yield from ()
        return held.adapter.spec

    def score(self, name: str | None, tokens: list[int], params: ScoreParams, images: Sequence[Image]) -> Work[Scores]:
        yield from ()
        return self._runtime.score(self._weights(name), tokens, params, images)

    def sample(self, name: str | None, request: Request) -> Work[None]:
        self._admitting.append(request)
        try:
            while not (request.cancelled or self._fits(request)):
                yield
        finally:
            self._admitting.remove(request)
        if not request.cancelled:
            self._sampler.add(self._weights(name), request)

    # How the above is run

    def _fits(self, request: Request) -> bool:
        """Tell whether a request may begin: the first that came to a lane's head, so that none waits for ever."""
        rows = self._sampler.rows
        return self._admitting[0] is request and (not rows or rows + len(request.samples) <= MAX_ROWS)

    def _find(self, name: str) -> _Held:
        if name not in self._held:
            raise EngineError(f"there is no adapter {name}; create or load it first")
        return self._held[name]

    def _weights(self, name: str | None) -> Any:
        return self._runtime.merged(None) if name is None else self._find(name).weights()

    def _receive(self) -> None:
        """Sort what has arrived into lanes; when idle wait for it, and a little for what comes with it."""
        idle = not self._lanes and not self._sampler.rows
        wait = None if idle else 0.0
        with suppress(queue.Empty):
            while (item := self._inbox.get(wait != 0, wait)) is not None:
                name, work, finish = item
                self._lanes.setdefault(name, deque()).append((work, finish))
                wait = GATHER_S if idle else 0.0

    def _advance(self, name: str | None) -> None:
        """Run a lane until an operation pauses, or its time is up."""
        lane, began = self._lanes[name], time.monotonic()
        while lane and time.monotonic() < began + SLICE_S:
            work, finish = lane[0]
            try:
                next(work)
                return
            except StopIteration as end:
                finish(end.value, None)
            except Exception as error:
                finish(None, _engine_error(error))
            lane.popleft()
        if not lane:
            del self._lanes[name]

    def _train(self) -> None:
        """Take up together what waits to be trained; go on a little with all that is under way."""
        self._take_up()
        for tasks, threads, work in self._training:
            torch.set_num_threads(threads)
            try:
                next(work, None)
            except Exception as error:
                for task in tasks:
                    task.done = task.done or _engine_error(error)
        torch.set_num_threads(self._share(USUAL))
        self._training = [each for each in self._training if any(task.done is None for task in each.tasks)]

    def _take_up(self) -> None:
        alike: dict[int, list[Task[Any]]] = {}
        for task in self._waiting:
            alike.setdefault(self._share(sum(len(row.tokens) for row in task.rows)), []).append(task)
        self._training += [_Training(tasks, each, self._runtime.train(tasks)) for each, tasks in alike.items()]
        self._waiting = []

    def _sample(self) -> None:
        try:
            self._sampler.step()
        except Exception as error:
            for request in self._sampler.requests():
                request.fail(_engine_error(error))

    def _share(self, tokens: int) -> int:
        """Return how many threads so many tokens of one call keep busy.

        Bits differ with the number of threads, so nothing that others send may change it. A power of two: of an odd
        number torch's kernels cut rows in the middle of what the processor takes at once, and that, too, changes bits.
        """
        most = min(self._threads, self._runtime.info.parameters * tokens // SHARE)
        return 1 << max(0, most.bit_length() - 1)

    def _fail_all(self, error: EngineError) -> None:
        while not self._inbox.empty():
            if (item := self._inbox.get()) is not None:
                item[2](None, error)
        for lane in self._lanes.values():
            for _, finish in lane:
                finish(None, error)
        for request in self._sampler.requests():
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
