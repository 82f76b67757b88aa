"""The engine as its owner sees it: starts the process, speaks to it, and tells when it is gone. Imports no torch."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from itertools import count
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
from doorstep.engine.protocol import Call, Cancel, Failure, Result, Step
from doorstep.errors import EngineError, EngineUnavailable

T = TypeVar("T")
Frame = Result | Failure | Step
_decode = msgspec.msgpack.Decoder(Frame).decode
_CLOSE_S = 5.0


class RemoteEngine:
    """An ``Engine`` in a process of its own. Make it by ``await RemoteEngine.start(…)``; ``close`` it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: Path,
    ) -> None:
        self.process = process
        self._writer = writer
        self._log = log
        self._ids = count()
        self._open: dict[int, asyncio.Queue[Frame | None]] = {}
        self._gone = False
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def start(
        cls, folder: Path, name: str, threads: int, log: Path, device: str = "cpu", nf4: bool = False
    ) -> "RemoteEngine":
        """Start the process and wait until its model is loaded; what it prints is added to ``log``."""
        place = Path(tempfile.mkdtemp(prefix="doorstep-"))  # a socket's path must be short
        socket = str(place / "engine")
        try:
            settings = {"folder": folder, "name": name, "socket": socket, "threads": threads, "device": device}
            arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
            process = await _spawn([*arguments, *["--nf4"] * nf4], threads, log)
            reader, writer = await asyncio.open_unix_connection(socket)
        finally:
            shutil.rmtree(place)
        return cls(process, reader, writer, log)

    async def info(self) -> ModelInfo:
        """Describe the base model."""
        return await self._call(ModelInfo, "info")

    async def create_adapter(self, adapter: str, spec: LoraSpec) -> None:
        """Make a fresh adapter."""
        await self._call(type(None), "create_adapter", adapter, spec)

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
        """Return the CPU time that the process has used, user and system."""
        return await self._call(float, "cpu_seconds")

    async def sample(
        self, adapter: str | None, prompt: list[int], params: SampleParams, n: int = 1, images: Sequence[Image] = ()
    ) -> AsyncIterator[Token | Finished]:
        """Stream ``n`` samples of a prompt; closing the iterator cancels."""
        call, frames = self._send("sample_steps", adapter, prompt, params, n, images)
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
            self._finish(call, ended)

    async def close(self) -> None:
        """End the process; calls that wait fail with EngineUnavailable."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), _CLOSE_S)
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await self._reading

    async def _call(self, kind: type[T], method: str, *arguments: Any) -> T:
        call, frames = self._send(method, *arguments)
        ended = False
        try:
            frame = await frames.get()
            ended = True
            result = self._checked(frame)
        finally:
            self._finish(call, ended)
        assert isinstance(result, Result)
        return msgspec.msgpack.decode(result.value, type=kind)

    def _send(self, method: str, *arguments: Any) -> "tuple[int, asyncio.Queue[Frame | None]]":
        if self._gone:
            raise self._unavailable()
        try:
            packed = msgspec.msgpack.encode(arguments)
        except OverflowError:
            raise EngineError("a number has more than 64 bits; the engine takes none that large") from None
        call = next(self._ids)
        frames = self._open[call] = asyncio.Queue()
        protocol.write(self._writer, Call(call, method, msgspec.Raw(packed)))
        return call, frames

    def _checked(self, frame: Frame | None) -> Result | Step:
        if frame is None:
            raise self._unavailable()
        if isinstance(frame, Failure):
            raise EngineError(frame.message, frame.category)
        return frame

    def _finish(self, call: int, ended: bool) -> None:
        """Forget a call; one that was left before its end is cancelled."""
        del self._open[call]
        if not (ended or self._gone):
            protocol.write(self._writer, Cancel(call))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                frame = _decode(await protocol.read(reader))
                if frames := self._open.get(frame.id):
                    frames.put_nowait(frame)
        self._gone = True
        for frames in self._open.values():
            frames.put_nowait(None)
        self._writer.close()

    def _unavailable(self) -> EngineUnavailable:
        return EngineUnavailable(f"the engine process has ended; start it again. What it said last is in {self._log}")


async def _spawn(arguments: list[str], threads: int, log: Path) -> asyncio.subprocess.Process:
    """Start the process and wait for its ``ready``; if it ends before, raise what it said."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        began = output.tell()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "doorstep.engine", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            # OpenMP threads that wait by spinning stop each other as soon as the cores are shared.
            env=os.environ | {"OMP_NUM_THREADS": str(threads or os.cpu_count() or 1), "OMP_WAIT_POLICY": "passive"},
        )
    assert process.stdout is not None
    if await process.stdout.readline() != b"ready\n":
        await process.wait()
        raise EngineError(f"the engine did not start: {_tail(log, began)}")
    return process


def _tail(log: Path, began: int) -> str:
    said = log.read_bytes()[began:].decode(errors="replace")
    return "\n".join(said.strip().splitlines()[-5:])
