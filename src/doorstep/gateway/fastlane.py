"""The fast lane: model calls handled inside uvicorn's HTTP protocol, without a scope, queues and messages per call.

Every other request goes the ordinary ASGI way on the same connection, and any other ASGI server can take ``app.py``:
same answers, at a third of the speed. The ASGI state must hold the ``Gateway`` as ``gateway``.
"""

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from doorstep.errors import BadInput
from doorstep.gateway.door import NO_KEY, Address, most_bytes, run_of, too_large
from doorstep.gateway.exchange import Asked, Exchange, Headers
from doorstep.gateway.gateway import Gateway

log = logging.getLogger(__name__)

POST = b"POST"
CONNECT = b"CONNECT"
SLOW_S = 60.0  # in which a request must be here with all of its body; looked at as often, so it may take twice that
STUCK_S = 60.0  # in which a client must take something of what waits for it
HEAD_BYTES = 64 * 1024  # of a request, before its body


class FastLane(HttpToolsProtocol):
    """uvicorn's protocol with a shorter way for model calls."""

    cycle: "RequestResponseCycle | FastCycle"  # type: ignore[assignment]
    _running: "FastCycle | None" = None
    _reading_since: float | None = None
    _watch: asyncio.TimerHandle | None = None
    _in_head = False
    _head_bytes = 0  # since the request began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: a client has so long for a request."""
        super().connection_made(transport)
        self._reading_since = self.loop.time()
        self._watch = self.loop.call_later(SLOW_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whoever still works for this client stops."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._running is not None:
            self._running.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes. An offer to speak another protocol is passed over, as HTTP allows; Java's client makes one."""
        self._unset_keepalive_if_required()
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._pass_over(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        else:
            if self._in_head and self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"The head of the request is larger than {HEAD_BYTES // 1024} KB.")

    def shutdown(self) -> None:
        """End with the server, after the answer that is under way."""
        super().shutdown()
        if self._running is not None:
            self._running.be_last()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._reading_since = self.loop.time()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Take the call if it is one for the fast lane."""
        self._in_head = False
        if self._is_offer():
            return
        address = None if self.parser.get_method() != POST else self._gateway().address(self.url)
        if address is None or self.limit_concurrency is not None:
            super().on_headers_complete()
            return
        before = self.cycle
        self.cycle = FastCycle(self, address, dict(self.headers))
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        if isinstance(self.cycle, FastCycle):
            self.cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here."""
        self._reading_since = None
        if self._is_offer():
            return
        if isinstance(self.cycle, FastCycle):
            self.cycle.complete()
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request. Of a client that sends many at once no more is read until it has its answers."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle if isinstance(cycle, FastCycle) else None
        if self._running is not None:
            self._running.start()
        else:
            super()._start_asgi_task(cycle, app)

    def _gateway(self) -> Gateway:
        gateway: Gateway = self.app_state["gateway"]
        return gateway

    def _is_offer(self) -> bool:
        """Tell whether the request is read again without its offer."""
        return self.parser.should_upgrade() and self.parser.get_method() != CONNECT

    def _pass_over(self, rest: bytes) -> None:
        """Read a request again as one that offers nothing: the parser takes its body for the other protocol."""
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join((line, *fields, b"\r\n", rest)))

    def _look(self) -> None:
        """Close a connection whose request does not come to its end."""
        if self._reading_since is not None and self.loop.time() - self._reading_since >= SLOW_S:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(SLOW_S, self._look)


class FastCycle:
    """One call on a connection: takes the body, answers by an ``Exchange``, and is the reply that it writes to.

    Its public attributes are those that uvicorn's protocol looks at.
    """

    def __init__(self, protocol: FastLane, address: Address, headers: dict[bytes, bytes]) -> None:
        version = protocol.parser.get_http_version()
        self.response_complete = False
        self.disconnected = False
        self.keep_alive: bool = version != "1.0" and protocol.parser.should_keep_alive()
        self.message_event = _Nobody()
        self._protocol = protocol
        self._transport: asyncio.Transport = protocol.transport
        self._flow: FlowControl = protocol.flow
        self._address = address
        self._headers = headers
        self._gateway = protocol._gateway()
        self._caller = self._gateway.keys.who(headers)
        self._expects = protocol.expect_100_continue
        self._chunked = version != "1.0"
        self._parts: list[bytes] = []
        self._size = 0
        self._most = most_bytes(address.dialect) if self._caller else 0  # of whom may not come in nothing is held
        self._turn = False  # it is this call's turn on the connection
        self._here = False  # all of the request is here
        self._task: asyncio.Task[None] | None = None

    # From the protocol

    def take(self, part: bytes) -> None:
        """Take a part of the body."""
        self._size += len(part)
        if self._size <= self._most:
            self._parts.append(part)
        elif self._parts:
            self._parts.clear()

    def complete(self) -> None:
        """All of the request is here."""
        self._here = True
        self._go()

    def start(self) -> None:
        """It is this call's turn."""
        self._turn = True
        if self._expects and not self._here:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._go()

    def be_last(self) -> None:
        """Nothing comes after this call; a request that is not here yet is not waited for."""
        self.keep_alive = False
        if not self._here:
            self._transport.close()

    def cancel(self) -> None:
        """The client has gone."""
        self.disconnected = True
        if self._task is not None and not self.response_complete:
            self._task.cancel()

    def _go(self) -> None:
        if not (self._here and self._turn) or self.response_complete:
            return
        task = self._task = self._protocol.loop.create_task(self._serve())
        tasks = self._protocol.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _serve(self) -> None:
        try:
            await self._answer()
        except asyncio.CancelledError:
            self.abort()  # the client has gone, or the server ends: a loop with an open connection does not close
            raise
        except Exception:
            log.exception("a call failed without an answer")
            self.abort()

    async def _answer(self) -> None:
        dialect, caller = self._address.dialect, self._caller
        if caller is None:
            await self.whole(401, _JSON, dialect.error(401, NO_KEY))
            return
        try:
            run_id = run_of(self._address, self._headers)
        except BadInput as error:
            await self.whole(400, _JSON, dialect.error(400, str(error)))
            return
        if self._size > self._most:
            await self.whole(413, _JSON, dialect.error(413, str(BadInput("body", too_large(self._most)))))
            return
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        asked = Asked(dialect=dialect, body=body, headers=self._headers, caller=caller, run_id=run_id)
        await Exchange(self._gateway, asked, self).serve()

    # The reply

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send an answer at once, when the client has taken those before it."""
        if self._flow.write_paused:
            await self._room()
        length = b"content-length: %d\r\n\r\n" % len(body)
        self._transport.write(b"".join((self._head(status, headers), length, body)))
        self._finish()

    async def begin(self, status: int, headers: Headers, piece: bytes) -> None:
        """Begin an answer of unknown length with its first piece, in one write."""
        if self._flow.write_paused:
            await self._room()
        if self._chunked:
            coding, piece = b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n" % (len(piece), piece)
        else:
            self.keep_alive, coding = False, b"\r\n"
        self._transport.write(b"".join((self._head(status, headers), coding, piece)))

    async def piece(self, data: bytes) -> None:
        """Send more, when the client has taken what was sent before."""
        if self._flow.write_paused:
            await self._room()
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def end(self, data: bytes) -> None:
        """Send the last of it."""
        if self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._transport.write(data)
        self._finish()

    def abort(self) -> None:
        """Break the connection off."""
        self.response_complete = True
        self._transport.abort()

    async def _room(self) -> None:
        """Wait while much is on its way to the client; one that takes nothing of it is given up."""
        giving_up = self._protocol.loop.call_later(STUCK_S, self._transport.abort)
        try:
            await self._flow.drain()
        finally:
            giving_up.cancel()

    def _head(self, status: int, headers: Headers) -> bytes:
        lines = [STATUS_LINE[status]]
        for name, value in self._protocol.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        return b"".join(lines)

    def _finish(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        self._protocol.on_response_complete()


class _Nobody:
    """Stands where uvicorn wakes an ASGI application, and wakes nobody."""

    def set(self) -> None:
        """Do nothing."""


_JSON: Headers = ((b"content-type", b"application/json"),)
