"""A model service that misbehaves on purpose, as a real TCP server in a thread of its own.

The model that a request asks for says how: ``MANNERS`` has them all. Counts what it was asked, by model.
"""

import asyncio
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
ANSWER = {
    "id": "up-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi there"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


def event(text: str | None = None, finish: str | None = None) -> bytes:
    """Return one chunk of a chat stream."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    value = {"id": "up-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


STREAM = [event("hi"), event(" there"), event(finish="stop"), b"data: [DONE]\n\n"]


class Connection:
    """One request and its connection."""

    def __init__(self, writer: asyncio.StreamWriter, request: dict[str, Any], headers: dict[str, str]) -> None:
        self.request = request
        self.headers = headers
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def whole(self, status: str, body: bytes, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", *headers]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Break the connection off without a word, as a crashed process does."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.close()


Manner = Callable[["BadUpstream", Connection], Awaitable[None]]


async def well(_: "BadUpstream", to: Connection) -> None:
    if not to.request.get("stream"):
        await to.whole("200 OK", json.dumps(ANSWER).encode())
        return
    await to.send(SSE)
    for piece in STREAM:
        await to.chunk(piece)
    await to.send(LAST_CHUNK)


async def cut(_: "BadUpstream", to: Connection) -> None:
    """Break off in the middle: of a stream after its first chunk, of a whole answer after half of it."""
    if to.request.get("stream"):
        await to.send(SSE)
        await to.chunk(STREAM[0])
    else:
        await to.send(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"id":')
    await asyncio.sleep(0.05)  # so that it is read before the reset
    to.reset()


async def short(_: "BadUpstream", to: Connection) -> None:
    """End the connection in order, but before the stream's end: no last chunk."""
    await to.send(SSE)
    await to.chunk(STREAM[0])
    to.close()


async def unmarked(_: "BadUpstream", to: Connection) -> None:
    """End the stream in order, but without its end mark."""
    await to.send(SSE)
    await to.chunk(STREAM[0])
    await to.send(LAST_CHUNK)


async def drip(_: "BadUpstream", to: Connection) -> None:
    """Send a stream byte by byte."""
    await to.send(SSE)
    for byte in b"".join(STREAM):
        await to.chunk(bytes([byte]))
        await asyncio.sleep(0.0005)
    await to.send(LAST_CHUNK)


async def endless(upstream: "BadUpstream", to: Connection) -> None:
    """Send chunk after chunk, as fast as they are taken."""
    await to.send(SSE)
    for _ in range(1000):
        await to.chunk(event("x" * 100_000))
        upstream.sent += 100_000


async def storm(_: "BadUpstream", to: Connection) -> None:
    await to.whole("429 Too Many Requests", b'{"error":{"message":"slow down"}}', "retry-after: 0.05")


async def calming(upstream: "BadUpstream", to: Connection) -> None:
    """Refuse twice, then answer."""
    await (storm if upstream.asked["calming"] < 3 else well)(upstream, to)


async def one_key(upstream: "BadUpstream", to: Connection) -> None:
    """Have had enough of the first key."""
    first = to.headers["authorization"] == "Bearer first"
    await (storm if first else well)(upstream, to)


async def empty(_: "BadUpstream", to: Connection) -> None:
    await to.whole("200 OK", b"")


async def error_event(_: "BadUpstream", to: Connection) -> None:
    """Send an error after status 200: in the middle of a stream, or as the body."""
    body = b'{"error":{"message":"it fell over","type":"server_error","code":"overloaded"}}'
    if not to.request.get("stream"):
        await to.whole("200 OK", body)
        return
    await to.send(SSE)
    await to.chunk(STREAM[0])
    await to.chunk(b"data: " + body + b"\n\n")
    await to.send(LAST_CHUNK)


async def malformed(_: "BadUpstream", to: Connection) -> None:
    """Send a stream with an event that is no JSON."""
    await to.send(SSE)
    for piece in (STREAM[0], b'data: {"choices": [{"del\n\n', *STREAM[1:]):
        await to.chunk(piece)
    await to.send(LAST_CHUNK)


async def not_utf8(_: "BadUpstream", to: Connection) -> None:
    body = json.dumps(ANSWER).encode().replace(b"hi there", b"hi \xff\xfe")
    await to.whole("200 OK", body)


async def not_http(_: "BadUpstream", to: Connection) -> None:
    await to.send(b"SSH-2.0-OpenSSH_9.6\r\n")
    to.close()


async def deep(_: "BadUpstream", to: Connection) -> None:
    await to.whole("200 OK", b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


async def silent(upstream: "BadUpstream", to: Connection) -> None:
    await asyncio.sleep(60)


async def late(upstream: "BadUpstream", to: Connection) -> None:
    """Say nothing to the first request, answer the others."""
    await (silent if upstream.asked["late"] == 1 else well)(upstream, to)


async def patient(upstream: "BadUpstream", to: Connection) -> None:
    """Think for a while, then answer."""
    await asyncio.sleep(0.3)
    await well(upstream, to)


async def stalled(upstream: "BadUpstream", to: Connection) -> None:
    """Begin a stream and say nothing more."""
    await to.send(SSE)
    await to.chunk(STREAM[0])
    await asyncio.sleep(60)


async def failing(_: "BadUpstream", to: Connection) -> None:
    await to.whole("500 Internal Server Error", b'{"error":{"message":"it fell over"}}')


MANNERS: dict[str, Manner] = {
    manner.__name__.replace("_", "-"): manner
    for manner in (
        well, cut, short, unmarked, drip, endless, storm, calming, one_key, empty, error_event, malformed, not_utf8,
        not_http, deep, silent, late, patient, stalled, failing,
    )
}  # fmt: skip


class BadUpstream:
    """The service; ``url`` is its address up to ``/v1``."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[bytes] = []  # of the last requests
        self.sent = 0  # bytes of endless streams
        self.open = 0  # connections
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "BadUpstream":
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1000)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._up.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            begun: bytes | None = b""
            while begun is not None:
                begun = await self._request(reader, writer, begun)
        self.open -= 1
        self._tasks.discard(task)
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, begun: bytes) -> bytes | None:
        """Answer one request; return what came of the next one meanwhile, or None when the client has gone."""
        head = begun + await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")[1:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.bodies = [*self.bodies[-9:], body]
        request = json.loads(body.decode("utf-8", "replace"))
        model = request["model"].partition("/")[0]
        self.asked[model] += 1
        answering = asyncio.ensure_future(MANNERS[model](self, Connection(writer, request, headers)))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone = answering.cancel()
            leaving.cancel()
            _, more = await asyncio.gather(answering, leaving, return_exceptions=True)
        if gone or writer.is_closing() or more == b"":
            return None
        return more if isinstance(more, bytes) else b""
