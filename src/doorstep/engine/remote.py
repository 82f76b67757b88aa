"""The engine as its owner sees it: starts the process, and again when it dies, and speaks to it. Imports no torch.

A process that has died takes along what it held: adapters, and what was being computed. The calls that waited fail with
``EngineUnavailable``, and so do those that come until there is a new one; ``on_loss`` says when.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from doorstep.engine import protocol
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
from doorstep.engine.life import Frame, Life
from doorstep.engine.protocol import Failure, Result, Step
from doorstep.errors import EngineError, EngineUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # before a new start; twice as long each time that it dies soon again
RETRY_S = 5.0  # about what a start takes
STEADY_S = 300.0  # a process that lived so long did not die of its start


class RemoteEngine:
    """An ``Engine`` in a process of its own. Make it by ``await RemoteEngine.start(…)``; ``close`` it."""

    def __init__(self, start: Callable[[], Awaitable[Life]], life: Life, log_file: Path) -> None:
        self.on_loss: list[Callable[[], None]] = []
        self._start = start
        self._life = life
        self._log_file = log_file
        self._cpu = 0.0  # seconds, when last asked
        self._spent = 0.0  # by processes that have ended
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls, folder: Path, name: str, threads: int, log: Path, device: str = "cpu", nf4: bool = False
    ) -> "RemoteEngine":
        """Start the process and wait until its model is loaded; what it prints is added to ``log``."""
        settings = {"folder": folder, "name": name, "threads": threads, "device": device}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        begin = partial(Life.start, [*arguments, *["--nf4"] * nf4], threads, log)
        return cls(begin, await begin(), log)

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process that runs, or the last that did."""
        return self._life.process

    async def info(self) -> ModelInfo:
        """Describe the base model."""
        return await self._call(ModelInfo, "info")

    async def create_adapter(self, adapter: str, spec: LoraSpec) -> None:
        """Make a fresh adapter."""
        await self._call(type(None), "create_adapter", adapter, spec)

    async def adapter_size(self, adapter: str) -> int:
        """Return how many bytes an adapter's numbers take in memory."""
        return await self._call(int, "adapter_size", adapter)

    async def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter."""
        await self._call(type(None), "drop_adapter", adapter)

    async def forward_backward(
        self, adapter: str, rows: list[TrainRow], loss: Loss, forward_only: bool = False
    ) -> TrainResult:
        """Add a loss's gradients to those of the adapter since its last step."""
        return await self._call(TrainResult, "forward_backward", adapter, rows, loss, forward_only)

    async def optim_step(self, adapter: str, params: AdamParams) -> dict[str, float]:
        """Step the optimiser."""
        return await self._call(dict[str, float], "optim_step", adapter, params)

    async def save(self, adapter: str, folder: str, optimizer: bool) -> Checkpoint:
        """Write the adapter in PEFT's format, atomically."""
        return await self._call(Checkpoint, "save", adapter, folder, optimizer)

    async def load(self, adapter: str, folder: str, optimizer: bool) -> LoraSpec:
        """Make or replace an adapter from a saved folder."""
        return await self._call(LoraSpec, "load", adapter, folder, optimizer)

    async def copy_adapter(self, source: str, target: str) -> None:
        """Make a copy of what an adapter is now."""
        await self._call(type(None), "copy_adapter", source, target)

    async def score(
        self,
        adapter: str | None,
        tokens: list[int],
        params: ScoreParams = ScoreParams(),  # noqa: B008
        images: Sequence[Image] = (),
    ) -> Scores:
        """Return each token's log-probability given those before it, and what else was asked for."""
        return await self._call(Scores, "score", adapter, tokens, params, images)

    async def measure(self, images: Sequence[bytes]) -> list[int]:
        """Return how many tokens each image takes."""
        return await self._call(list[int], "measure", images)

    async def cpu_seconds(self) -> float:
        """Return the CPU time that the process has used, user and system, with those before it."""
        self._cpu = await self._call(float, "cpu_seconds")
        return self._spent + self._cpu

    async def sample(
        self, adapter: str | None, prompt: list[int], params: SampleParams, n: int = 1, images: Sequence[Image] = ()
    ) -> AsyncIterator[Token | Finished]:
        """Stream ``n`` samples of a prompt; closing the iterator cancels."""
        life = self._alive()
        call, frames = life.send("sample_steps", (adapter, prompt, params, n, images))
        ended = False
        try:
            while isinstance(frame := self._checked(await frames.get()), Step):
                for event in protocol.events(frame):
                    yield event
            ended = True
        except EngineError:
            ended = True
            raise
        finally:
            life.finish(call, ended)

    async def close(self) -> None:
        """End the process; calls that wait fail with EngineUnavailable."""
        self._watching.cancel()
        await asyncio.wait({self._watching})
        await self._life.close()

    async def _call(self, kind: type[T], method: str, *arguments: Any) -> T:
        life = self._alive()
        call, frames = life.send(method, arguments)
        ended = False
        try:
            frame = await frames.get()
            ended = True
            result = self._checked(frame)
        finally:
            life.finish(call, ended)
        assert isinstance(result, Result)
        return msgspec.msgpack.decode(result.value, type=kind)

    def _alive(self) -> Life:
        if self._life.gone:
            raise self._unavailable()
        return self._life

    def _checked(self, frame: Frame | None) -> Result | Step:
        if frame is None:
            raise self._unavailable()
        if isinstance(frame, Failure):
            raise EngineError(frame.message, frame.category)
        return frame

    def _unavailable(self) -> EngineUnavailable:
        return EngineUnavailable(
            f"the engine process has ended and is being started again. What it said last is in {self._log_file}",
            retry_after_s=RETRY_S,
        )

    async def _watch(self) -> None:
        """Start a new process whenever one has died."""
        pause = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            how = await self._life.end()
            if time.monotonic() - began > STEADY_S:
                pause = FIRST_PAUSE_S
            log.error("the engine process has ended (%s); it is being started again", how)
            self._spent, self._cpu = self._spent + self._cpu, 0.0
            self._tell()
            pause = await self._revive(pause)

    def _tell(self) -> None:
        for told in self.on_loss:
            try:
                told()
            except Exception:  # whoever cannot put up with a loss must not keep the others without an engine
                log.exception("a loss of the engine could not be dealt with")

    async def _revive(self, pause: float) -> float:
        """Try until there is a new process; return how long to wait before the next time."""
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            try:
                self._life = await self._start()
            except (EngineError, OSError) as error:
                log.error("the engine cannot be started: %s", error)
            else:
                log.warning("the engine is there again")
                return pause
