"""An upstream of raw bytes: a TCP server in the test's own loop that says to each request what the test tells it to."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class RawUpstream:
    """``say`` is called with each request's connection; what it leaves open stays open for the next request."""

    def __init__(self, say: Callable[["Caller"], Awaitable[None]]) -> None:
        self.url = ""
        self.say = say
        self.requests: list[bytes] = []  # head and body of each, as they came
        self.callers: list[Caller] = []  # one for each connection

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = Caller(self, reader, writer)
        self.callers.append(caller)
        try:
            while not writer.is_closing() and (request := await _request(reader)):
                self.requests.append(request)
                await self.say(caller)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            caller.gone.set()
            writer.close()


class Caller:
    """One connection, as the upstream sees it."""

    def __init__(self, upstream: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.upstream = upstream
        self.reader = reader
        self.writer = writer
        self.gone = asyncio.Event()

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()

    async def silence(self) -> None:
        """Say nothing until the client has gone."""
        await self.reader.read()
        self.close()


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return an answer with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*headers: str) -> bytes:
    """Return the head of an answer in chunks."""
    return "\r\n".join(["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *headers, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


@asynccontextmanager
async def upstream_that(
    say: Callable[[Caller], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawUpstream]:
    """Serve on a free port of 127.0.0.1."""
    upstream = RawUpstream(say)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    upstream.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    try:
        yield upstream
    finally:
        server.close()
        for caller in upstream.callers:
            caller.reset()
        await asyncio.gather(*(caller.gone.wait() for caller in upstream.callers))
        await server.wait_closed()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """Return the next request, empty when there is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + (await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b"")
