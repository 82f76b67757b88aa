"""One life of the engine's process, from its start to its end, and the calls that it was sent. Imports no torch."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from doorstep.engine import protocol
from doorstep.engine.protocol import Call, Cancel, Failure, Result, Step
from doorstep.errors import EngineError

Frame = Result | Failure | Step
Frames = asyncio.Queue[Frame | None]  # None: the process has ended
_decode = msgspec.msgpack.Decoder(Frame).decode
_CLOSE_S = 5.0


class Life:
    """A process that runs. Make it by ``await Life.start(…)``; ``close`` it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.gone = False
        self._writer = writer
        self._ids = count()
        self._open: dict[int, Frames] = {}
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def start(cls, arguments: list[str], threads: int, log: Path) -> "Life":
        """Start the process and wait until its model is loaded; what it prints is added to ``log``."""
        place = Path(tempfile.mkdtemp(prefix="doorstep-"))  # a socket's path must be short
        socket, began = str(place / "engine"), _length(log)
        try:
            process = await _spawn([*arguments, "--socket", socket], threads, log)
            try:
                await _ready(process, log, began)
                return cls(process, *await asyncio.open_unix_connection(socket))
            except BaseException:  # its owner may be closed meanwhile
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                raise
        finally:
            shutil.rmtree(place)

    def send(self, method: str, arguments: tuple[Any, ...]) -> tuple[int, Frames]:
        """Send a call; return its number and where its answer comes."""
        try:
            packed = msgspec.msgpack.encode(arguments)
        except OverflowError:
            raise EngineError("a number has more than 64 bits; the engine takes none that large") from None
        call = next(self._ids)
        frames = self._open[call] = asyncio.Queue()
        protocol.write(self._writer, Call(call, method, msgspec.Raw(packed)))
        return call, frames

    def finish(self, call: int, ended: bool) -> None:
        """Forget a call; one that was left before its end is cancelled."""
        del self._open[call]
        if not (ended or self.gone):
            protocol.write(self._writer, Cancel(call))

    async def end(self) -> str:
        """Wait for the process's end; return how it ended."""
        await asyncio.wait({self._reading})
        code = await self._ended()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    async def close(self) -> None:
        """End the process; calls that wait get None."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self._ended()
        await self._reading

    async def _ended(self) -> int:
        """Return the exit status of a process that is about to end; one that does not is killed."""
        with suppress(TimeoutError):
            return await asyncio.wait_for(self.process.wait(), _CLOSE_S)
        self.process.kill()
        return await self.process.wait()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                frame = _decode(await protocol.read(reader))
                if frames := self._open.get(frame.id):
                    frames.put_nowait(frame)
        self.gone = True
        for frames in self._open.values():
            frames.put_nowait(None)
        self._writer.close()


async def _spawn(arguments: list[str], threads: int, log: Path) -> asyncio.subprocess.Process:
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "doorstep.engine", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            # OpenMP threads that wait by spinning stop each other as soon as the cores are shared.
            env=os.environ | {"OMP_NUM_THREADS": str(threads or os.cpu_count() or 1), "OMP_WAIT_POLICY": "passive"},
        )


async def _ready(process: asyncio.subprocess.Process, log: Path, began: int) -> None:
    """Wait for the process's ``ready``; if it ends before, raise what it said."""
    assert process.stdout is not None
    if await process.stdout.readline() != b"ready\n":
        await process.wait()
        raise EngineError(f"the engine did not start: {_tail(log, began)}")


def _length(log: Path) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.stat().st_size if log.exists() else 0


def _tail(log: Path, began: int) -> str:
    said = log.read_bytes()[began:].decode(errors="replace")
    return "\n".join(said.strip().splitlines()[-5:])
