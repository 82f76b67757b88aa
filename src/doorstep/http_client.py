"""HTTP/1.1 to an upstream: kept connections, three clocks, back-pressure, and nothing that a model call does not need.

``Client.request`` returns when the head of the answer is there; the ``Response`` then gives the body whole or in pieces
as they come. Redirects are not followed and proxies of the environment not used: who names an address decides where a
request goes. One retry is made here: a kept connection that turns out closed before any answer is replaced.

The clocks are in seconds: until the head of the answer (``first_byte_s``), between its bytes (``idle_s``), and for all
of it (``total_s``). They cost one timer a connection, which is set anew only where it would ring too late.
"""

import asyncio
import ssl
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple, cast
from urllib.parse import quote, urlsplit

import httptools

from doorstep.errors import ProviderError, UsageError

HEAD_BYTES = 64 * 1024
BODY_BYTES = 200_000_000
HIGH_WATER = 256 * 1024  # bytes that wait to be taken before the upstream is no longer read from
KEEP_S = 30.0  # an unused connection is kept at least so long
KEPT = 256  # unused connections to one origin
EVENT_STREAM = "text/event-stream"
_SAFE = "/%:=@!$&'()*+,;~"  # in a URL, as it is
_EARLY_S = 0.001  # loops round the time of a timer to milliseconds

Headers = Sequence[tuple[bytes, bytes]]


class Client:
    """A pool of connections to each origin, for one event loop.

    ``tls`` is for upstreams with certificates of their own. ``body_bytes`` bounds an answer, framing included.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, body_bytes: int = BODY_BYTES) -> None:
        self.body_bytes = body_bytes
        self.connections: set[_Connection] = set()
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop | None = None  # kept, since to ask for it is a system call
        self._kept: dict[_Origin, list[_Connection]] = {}

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def request(
        self,
        method: str,
        url: str,
        headers: Headers = (),
        body: bytes = b"",
        *,
        first_byte_s: float = 60.0,
        idle_s: float = 60.0,
        total_s: float = 600.0,
        name: str | None = None,
        address: str | None = None,
    ) -> "Response":
        """Send a request; return when the head of its answer is there, whatever its status.

        ``ProviderError`` calls the upstream ``name``, else by its host. ``address`` is the IP address to connect to,
        where it was resolved and checked before.
        """
        target = _target(url)
        loop = self._loop = self._loop or asyncio.get_running_loop()
        clocks = _Clocks(loop.time(), min(first_byte_s, total_s), idle_s, total_s)
        call = _Call(name or target.host.decode(), method, _message(method, target, headers, body), clocks)
        origin = target.origin._replace(address=address) if address else target.origin
        kept = self._kept.setdefault(origin, [])
        while kept:
            connection = kept.pop()
            if connection.is_open:
                try:
                    return await connection.ask(call)
                except _Unanswered:
                    break
        connection = await self._connect(loop, origin, kept, call)
        try:
            return await connection.ask(call)
        except _Unanswered as error:
            raise ProviderError(f"{call.name} closed the connection without an answer{_reason(error)}") from None

    async def close(self) -> None:
        """Close all connections, also those in use."""
        for connection in list(self.connections):
            connection.abort()
        while self.connections:
            await next(iter(self.connections)).lost

    async def _connect(
        self, loop: asyncio.AbstractEventLoop, origin: "_Origin", kept: list["_Connection"], call: "_Call"
    ) -> "_Connection":
        clocks = call.clocks
        try:
            async with asyncio.timeout_at(clocks.started + clocks.first_byte_s):
                _transport, connection = await loop.create_connection(
                    lambda: _Connection(self, loop, kept),
                    origin.address or origin.host,
                    origin.port,
                    ssl=self._context() if origin.secure else None,
                    server_hostname=origin.host if origin.secure else None,
                )
        except TimeoutError:
            raise ProviderError(_late_to_begin(call), status=504) from None
        except OSError as error:
            raise ProviderError(f"{call.name} cannot be reached: {type(error).__name__}{_reason(error)}") from None
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


class Response:
    """An answer that has begun. Take its body with ``read``, or piece by piece with ``next``; ``close`` gives it up."""

    __slots__ = ("_body", "_complete", "_connection", "_error", "_headers", "_pairs", "_size", "_waiter", "status")

    def __init__(self, connection: "_Connection") -> None:
        self.status = 0
        self._pairs: list[tuple[bytes, bytes]] = []
        self._headers: dict[str, str] | None = None
        self._body: list[bytes] = []  # what has come and was not taken
        self._size = 0
        self._complete = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._connection: _Connection | None = connection  # until the body is complete

    @property
    def headers(self) -> dict[str, str]:
        """The headers, names in lower case; one that came several times is joined by commas."""
        if self._headers is None:
            found: dict[str, str] = {}
            for raw, value in self._pairs:
                name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
                found[name] = f"{found[name]}, {text}" if name in found else text
            self._headers = found
        return self._headers

    @property
    def is_stream(self) -> bool:
        """Whether the body comes over time: an event stream, or not wholly there yet."""
        return not self._complete or self.headers.get("content-type", "").startswith(EVENT_STREAM)

    async def read(self) -> bytes:
        """Return the whole body."""
        pieces = []
        try:
            while piece := await self.next():
                pieces.append(piece)
        except asyncio.CancelledError:
            self.abort()
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def next(self) -> bytes:
        """Return what has come since the last time, at least a byte, in one piece; ``b""`` at the clean end."""
        while not self._body:
            if self._error is not None:
                raise self._error
            if self._complete:
                return b""
            await self._wait()
        body = self._body
        piece = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        self._size = 0
        if self._connection is not None:
            self._connection.resume()
        return piece

    def abort(self) -> None:
        """Give the answer up: unless all of it has come, the connection is closed, by which the upstream knows."""
        if self._connection is not None:
            self._connection.abort()

    async def close(self) -> None:
        """Give the answer up, as ``abort``; a body is closed so."""
        self.abort()

    async def _begin(self) -> None:
        """Wait for the head."""
        try:
            await self._wait()
        except asyncio.CancelledError:
            self.abort()
            raise
        if self._error is not None and not self.status:
            raise self._error

    async def _wait(self) -> None:
        assert self._connection is not None  # while there is something to wait for
        self._waiter = self._connection.loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        """Let go on who waits for the head, or for more."""
        waiter = self._waiter
        if waiter is not None and (self.status or self._error):
            self._waiter = None
            if not waiter.done():  # it is when who waited was cancelled
                waiter.set_result(None)

    def _end(self, error: Exception | None = None) -> None:
        self._connection = None
        self._error = error
        self._complete = error is None
        self._wake()

    @property
    def _ends_by_closing(self) -> bool:
        return bool(self.status) and not {"content-length", "transfer-encoding"} & self.headers.keys()


# Behind the two


class _Clocks(NamedTuple):
    started: float
    first_byte_s: float
    idle_s: float
    total_s: float


class _Call(NamedTuple):
    name: str  # of the upstream, for messages
    method: str
    message: bytes
    clocks: _Clocks


class _Origin(NamedTuple):
    secure: bool
    host: str
    port: int
    address: str | None = None


class _Target(NamedTuple):
    origin: _Origin
    path: bytes
    host: bytes  # as the header says it


class _Unanswered(Exception):
    """The connection closed before a byte of the answer."""


class _Connection(asyncio.Protocol):
    """One connection: takes one answer at a time, then goes back among the kept ones. Loops set TCP_NODELAY."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop, kept: list["_Connection"]) -> None:
        self.lost: asyncio.Future[None] = loop.create_future()
        self._client = client
        self.loop = loop
        self._kept = kept
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._call: _Call
        self._response: Response | None = None  # that is not complete yet
        self._received = 0  # bytes of this answer, framing included
        self._most = HEAD_BYTES
        self._reusable = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it can be asked, as far as is known."""
        return not self._transport.is_closing()

    async def ask(self, call: _Call) -> Response:
        """Send a request and wait for the head of its answer."""
        response = self._response = Response(self)
        self._call = call
        self._received, self._most = 0, HEAD_BYTES
        self._set_deadline(call.clocks.started + call.clocks.first_byte_s)
        self._transport.write(call.message)
        await response._begin()
        return response

    def resume(self) -> None:
        """Read on, after what had come was taken."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
            self._watch_for_more()

    def abort(self) -> None:
        """Close at once."""
        if self._response is not None:
            self._response._end(ProviderError(f"the call to {self._call.name} was given up"))
            self._response = None
        self._transport.abort()

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._client.connections.add(self)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nothing was asked
            self._transport.abort()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._response is not None:
                self._fail(ProviderError(f"{self._call.name} sent what is not HTTP/1.1{_reason(error)}"))
                return
            self._reusable = False  # it went wrong after the end of the answer
        if self._response is None:
            response._end()
            self._keep()
        elif self._received > self._most:
            part = "body" if response.status else "head"
            self._fail(ProviderError(f"{self._call.name} sent too much: the {part} of its answer is over the limit"))
        else:
            if response._size > HIGH_WATER and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            if response.status:
                self._watch_for_more()
                response._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self in self._kept:
            self._kept.remove(self)
        self._client.connections.discard(self)
        self.lost.set_result(None)
        response = self._response
        if response is None:
            return
        self._response = None
        if exc is None and response._ends_by_closing:
            response._end()
        elif not self._received:
            response._end(_Unanswered(*([exc] if exc else [])))
        else:
            response._end(ProviderError(f"{self._call.name} broke off its answer{_reason(exc)}"))

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._response is None:  # a second answer to one question
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is not None and not response.status:  # and no trailer
            response._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        response = self._response
        if response is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            response._pairs.clear()
            return
        response.status = status
        self._most = self._received + self._client.body_bytes
        if self._call.method == "HEAD":
            self._response, self._reusable = None, False  # the parser waits for a body

    def on_body(self, body: bytes) -> None:
        response = self._response
        if response is not None:
            response._body.append(body)
            response._size += len(body)

    def on_message_complete(self) -> None:
        if self._response is not None and self._response.status:
            self._response = None
            self._reusable = self._parser.should_keep_alive()  # the parser knows it only here

    # The rest

    def _keep(self) -> None:
        """Go back among the kept ones, where the answer and the upstream allow it."""
        self.resume()
        written = not self._transport.get_write_buffer_size()
        if self._reusable and written and len(self._kept) < KEPT and not self._transport.is_closing():
            self._kept.append(self)
            self._set_deadline(self.loop.time() + KEEP_S)
        else:
            self._transport.close()

    def _fail(self, error: Exception) -> None:
        response, self._response = self._response, None
        if response is not None:
            response._end(error)
        self._transport.abort()

    # Clocks

    def _watch_for_more(self) -> None:
        clocks = self._call.clocks
        end = clocks.started + clocks.total_s
        self._set_deadline(end if self._paused else min(end, self.loop.time() + clocks.idle_s))

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer, self._timer_at = self.loop.call_at(deadline, self._ring), deadline

    def _ring(self) -> None:
        self._timer = None
        now = self.loop.time()
        if now + _EARLY_S < self._deadline:
            self._set_deadline(self._deadline)
        elif self._response is None:
            self._transport.close()
        else:
            self._fail(ProviderError(self._late(self._response, now), status=504))

    def _late(self, response: Response, now: float) -> str:
        clocks = self._call.clocks
        if not response.status:
            return _late_to_begin(self._call)
        if now + _EARLY_S >= clocks.started + clocks.total_s:
            return f"{self._call.name} took longer than {clocks.total_s:g} s for its answer"
        return f"{self._call.name} was silent for {clocks.idle_s:g} s in the middle of its answer"


@lru_cache(maxsize=1024)
def _target(url: str) -> _Target:
    """Read a URL, once."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url}: no URL that can be called: {error}") from None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise UsageError(f"{url}: no URL that can be called; give http://HOST/… or https://HOST/…")
    secure = parts.scheme == "https"
    path = quote(parts.path or "/", safe=_SAFE)
    if parts.query:
        path += "?" + quote(parts.query, safe=_SAFE + "?")
    origin = _Origin(secure, host.encode("idna").decode(), port or (443 if secure else 80))
    return _Target(origin, path.encode(), parts.netloc.encode("idna"))


def _message(method: str, target: _Target, headers: Headers, body: bytes) -> bytes:
    lines = [b"%s %s HTTP/1.1\r\nhost: %s" % (method.encode(), target.path, target.host)]
    lines += [b"%s: %s" % pair for pair in headers]
    if body or method not in ("GET", "HEAD", "DELETE"):
        lines.append(b"content-length: %d" % len(body))
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
        raise UsageError("a header to send has a line break in it; look at the key in the environment")
    return head + b"\r\n\r\n" + body


def _late_to_begin(call: _Call) -> str:
    return f"{call.name} did not begin to answer within {call.clocks.first_byte_s:g} s"


def _reason(error: BaseException | None) -> str:
    return f": {error}" if error and str(error) else ""
