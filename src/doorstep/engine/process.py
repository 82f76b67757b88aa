"""The engine process: holds a ``LocalEngine``, answers one owner on a Unix socket, and ends when the owner does."""

import argparse
import asyncio
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from doorstep.engine import protocol
from doorstep.engine.local import LocalEngine
from doorstep.engine.protocol import ARGUMENTS, Call, Cancel, Failure, Result
from doorstep.errors import EngineError

_decode = msgspec.msgpack.Decoder(Call | Cancel).decode


def main() -> None:
    """Run the process: ``python -m doorstep.engine --folder F --name N --socket S --threads T``."""
    parser = argparse.ArgumentParser(description="Doorstep's engine process; started by doorstep.engine.remote")
    parser.add_argument("--folder", type=Path, required=True, help="of the base model")
    parser.add_argument("--name", required=True, help="of the base model")
    parser.add_argument("--socket", required=True, help="path to listen on")
    parser.add_argument("--threads", type=int, required=True, help="of a matrix product")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto: cuda where there is one")
    parser.add_argument("--nf4", action="store_true", help="keep the base's matrices in four bits a number")
    arguments = parser.parse_args()
    threading.Thread(target=_die_with_owner, daemon=True).start()
    try:
        asyncio.run(_serve(arguments))
    except EngineError as error:
        sys.exit(str(error))


def _die_with_owner() -> None:
    """End at once when stdin closes: that happens however the owner ends."""
    while os.read(0, 1):
        pass
    os._exit(0)


async def _serve(arguments: argparse.Namespace) -> None:
    engine = await LocalEngine.start(
        arguments.folder, arguments.name, arguments.threads, arguments.device, arguments.nf4
    )
    gone = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Connection(engine, reader, writer).run()
        gone.set()

    server = await asyncio.start_unix_server(connected, arguments.socket)
    print("ready", flush=True)
    await gone.wait()
    server.close()
    await engine.close()


class _Connection:
    """The owner's calls, each a task."""

    def __init__(self, engine: LocalEngine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            while True:
                frame = _decode(await protocol.read(self._reader))
                if isinstance(frame, Call):
                    task = asyncio.create_task(self._answer(frame))
                    self._tasks[frame.id] = task
                    task.add_done_callback(partial(self._ended, frame.id))
                elif frame.id in self._tasks:
                    self._tasks[frame.id].cancel()
        except (asyncio.IncompleteReadError, ConnectionError):
            for task in list(self._tasks.values()):
                task.cancel()
            self._writer.close()

    def _ended(self, call: int, _: asyncio.Task[None]) -> None:
        del self._tasks[call]

    async def _answer(self, call: Call) -> None:
        try:
            arguments = msgspec.msgpack.decode(call.arguments, type=ARGUMENTS[call.method])
            value = await self._run(call, arguments)
            protocol.write(self._writer, Result(call.id, msgspec.Raw(msgspec.msgpack.encode(value))))
        except EngineError as error:
            protocol.write(self._writer, Failure(call.id, str(error), error.category))
        except Exception as error:
            message = f"the engine failed: {type(error).__name__}: {error}"
            protocol.write(self._writer, Failure(call.id, message, "server"))
            raise

    async def _run(self, call: Call, arguments: tuple[Any, ...]) -> Any:
        if call.method == "cpu_seconds":
            return time.process_time()
        if call.method != "sample_steps":
            return await getattr(self._engine, call.method)(*arguments)
        stream = self._engine.sample_steps(*arguments)
        try:
            async for events in stream:
                protocol.write(self._writer, protocol.step(call.id, events))
                await self._writer.drain()
        finally:
            await stream.aclose()
        return None
