"""One call, from the request that was read to the record of what came of it.

Admit, ask, relay, keep. Before the first byte a failure is an error that the client can read, after the traffic policy
has tried what it may. After it the connection is broken off, never ended cleanly, so that no client takes half an
answer for a whole one. The call is kept before its last byte goes out; nobody waits for the store.
"""

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec

from doorstep import ids
from doorstep.errors import (
    BadInput,
    DoorstepError,
    EngineError,
    EngineUnavailable,
    LimitReached,
    NotFound,
    ProviderError,
    UsageError,
)
from doorstep.gateway.asking import Asking, Begun
from doorstep.gateway.cache import Wish
from doorstep.gateway.capture import Capture
from doorstep.gateway.coalesce import FirstFailed, Flight, Join, Lead
from doorstep.gateway.dialects.base import ChatDialect, Dialect, Head, path_of
from doorstep.gateway.keys import Caller
from doorstep.gateway.limits import Reservation
from doorstep.gateway.metrics import NOBODY
from doorstep.gateway.models import Plan, Target
from doorstep.gateway.providers.base import JSON, Answer, Stream

if TYPE_CHECKING:
    from doorstep.gateway.gateway import Gateway

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # as nginx notes it
READ_OUT_S = 0.05
RECORDED_BYTES = 32_000_000  # of one answer; what comes after is relayed but not kept
CALL_ID = b"x-doorstep-call-id"
CUSTOMER = b"x-doorstep-customer"

Headers = Sequence[tuple[bytes, bytes]]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request as a front door read it. ``headers`` have lower-case names."""

    dialect: Dialect
    body: bytes
    headers: Mapping[bytes, bytes]
    caller: Caller
    run_id: str | None = None


class Reply(Protocol):
    """Where an answer goes: the client's connection. Every method may wait for a client that reads slowly."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send an answer at once."""
        ...

    async def begin(self, status: int, headers: Headers, piece: bytes) -> None:
        """Begin an answer of unknown length with its first piece."""
        ...

    async def piece(self, data: bytes) -> None:
        """Send more of it."""
        ...

    async def end(self, data: bytes) -> None:
        """Send the last of it."""
        ...

    def abort(self) -> None:
        """Break the connection off, so that the client can tell that the answer is not whole."""
        ...


class Exchange:
    """One call. ``serve`` answers it; cancelling it cancels the work upstream and keeps what there was."""

    def __init__(self, gateway: "Gateway", asked: Asked, reply: Reply) -> None:
        self._gateway = gateway
        self._asked = asked
        self._dialect = asked.dialect
        self._reply = reply
        self._call_id = ids.new_id("call")
        self._started_us, self._clock = ids.now_us(), time.monotonic()
        self._first_us: int | None = None
        self._head: Head | None = None
        self._asking: Asking | None = None
        self._answer: Answer | None = None
        self._reservation: Reservation | None = None
        self._wish: Wish | None = None
        self._hit: Target | None = None  # whose kept answer it was
        self._flight: Flight | None = None  # by which the client's retries may join
        self._joined = False
        self._retry_of: str | None = None
        self._sent: list[bytes] = []
        self._size = 0
        self._begun = False  # the client has a first byte
        self._kept = False

    async def serve(self) -> None:
        """Answer the call."""
        try:
            await self._serve()
        except asyncio.CancelledError:
            self._keep(CLIENT_GONE, "the client went away" + ("" if self._begun else " before the first byte"))
            raise
        finally:
            if self._answer is not None and not isinstance(self._answer.body, bytes):
                await self._answer.body.close()
            if self._flight is not None:
                self._flight.fail()  # unless it has ended well
            if self._reservation is not None:
                self._reservation.release()  # unless it is settled

    async def _serve(self) -> None:
        try:
            begun = await self._begin()
        except Exception as error:
            await self._refuse(error)
            return
        answer = self._answer = begun.answer
        self._first_us = ids.now_us()
        try:
            if isinstance(answer.body, bytes):
                await self._send_whole(answer, answer.body, begun.error)
            else:
                await self._relay(answer, answer.body, begun.first)
        except Exception as error:
            if self._asking is not None and isinstance(error, ProviderError):
                self._asking.broke_off(error)
            if not self._begun:
                await self._refuse(error)
                return
            log.warning("call %s broke off: %s", self._call_id, error, exc_info=not isinstance(error, DoorstepError))
            self._keep(answer.status, str(error), broken=True)
            await self._break_off(error)

    # To the answer

    async def _begin(self) -> Begun:
        """Return the answer of the call that this one repeats, or that was kept, or of whoever can be asked."""
        head = self._head = self._dialect.head(self._asked.body)
        plan = self._gateway.models.resolve(head.model)
        joined = await self._join(head)
        if joined is not None:
            return joined
        asked = self._asked
        self._reservation = self._gateway.admit(asked.caller, plan, head, len(asked.body))
        asking = self._asking = Asking(
            self._gateway.traffic,
            plan,
            call_id=self._call_id,
            run_id=asked.run_id,
            dialect=self._dialect,
            head=head,
            body=asked.body,
            headers=asked.headers,
            key_id=asked.caller.key_id,
        )
        return self._kept_answer(plan, head, asking) or await asking.begin()

    async def _join(self, head: Head) -> Begun | None:
        """Return the answer of the call that this is a retry of, if it can be joined."""
        asked = self._asked
        entry = self._gateway.retries.enter(
            self._call_id,
            key_id=asked.caller.key_id,
            run_id=asked.run_id,
            path=path_of(self._dialect, head.model),
            headers=asked.headers,
            body=asked.body,
        )
        if isinstance(entry, Join):
            try:
                answer = await entry.flight.answer()
                assert not isinstance(answer.body, bytes)
                first = await answer.body.next()
            except (FirstFailed, ProviderError):
                self._retry_of = entry.flight.call_id
                return None
            self._joined, self._call_id = True, entry.flight.call_id
            return Begun(answer, first)
        if isinstance(entry, Lead):
            self._flight, self._retry_of = entry.flight, entry.retry_of
        return None

    def _kept_answer(self, plan: Plan, head: Head, asking: Asking) -> Begun | None:
        """Return an answer to the same question from before, where the call wishes it."""
        asked, cache = self._asked, self._gateway.cache
        self._wish = wish = cache.wish(
            plan.alias,
            asked.headers,
            dialect=self._dialect,
            head=head,
            body=asked.body,
            key_id=asked.caller.key_id,
        )
        if wish is None:
            return None
        for target in asking.targets:
            kept = cache.find(wish, target)
            if kept is not None:
                self._hit = target
                headers = {"x-doorstep-cache": "hit"}
                return Begun(Answer(body=kept.body, content_type=kept.content_type, headers=headers), b"")
        return None

    # To the client

    async def _send_whole(self, answer: Answer, body: bytes, error: str | None) -> None:
        if self._flight is not None and error is None:
            self._flight.begin(answer)
        self._add(body)
        self._keep(answer.status, error)
        await self._reply.whole(answer.status, self._headers(answer), body)

    async def _relay(self, answer: Answer, stream: Stream, piece: bytes) -> None:
        """Send pieces as they come; the one with the end mark, after which clients stop reading, once it is kept."""
        if self._flight is not None:
            self._flight.begin(answer)
        is_last = self._dialect.is_last
        while piece and not is_last(piece):
            self._add(piece)
            await self._send(answer, piece)
            piece = await stream.next()
        if piece:
            piece += await _read_out(stream)
            self._add(piece)
        else:
            self._check_end()
        self._keep(answer.status, None)
        if not self._begun:
            await self._send(answer, piece)
            piece = b""
        await self._reply.end(piece)

    def _check_end(self) -> None:
        """Refuse to end a stream that stopped in order, but before its end: so some services do when they fail."""
        if self._head is None or not self._head.stream or self._size > RECORDED_BYTES:
            return
        reading = self._dialect.understand(b"".join(self._sent))
        if not reading.complete and reading.error is None:
            raise ProviderError("the provider ended its answer in the middle")

    async def _send(self, answer: Answer, piece: bytes) -> None:
        if self._begun:
            await self._reply.piece(piece)
        else:
            self._begun = True
            await self._reply.begin(answer.status, self._headers(answer), piece)

    def _add(self, piece: bytes) -> None:
        """Keep a piece for the record, up to a limit: an endless stream must not fill the memory."""
        self._size += len(piece)
        if self._size <= RECORDED_BYTES:
            self._sent.append(piece)
        if self._flight is not None:
            self._flight.add(piece)

    def _headers(self, answer: Answer) -> Headers:
        return [
            (b"content-type", answer.content_type.encode("latin-1")),
            (CALL_ID, self._call_id.encode()),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()),
        ]

    async def _refuse(self, error: Exception) -> None:
        """Answer with an error in the dialect's shape."""
        if not isinstance(error, DoorstepError):
            log.exception("call %s", self._call_id, exc_info=error)
        status, code = status_of(error)
        if isinstance(error, LimitReached):
            self._gateway.metrics.count_limited(error.code)
        message = str(error) if isinstance(error, DoorstepError) else "Doorstep failed at this call; see its log."
        param = error.where if isinstance(error, BadInput) else "model" if isinstance(error, NotFound) else None
        body = self._dialect.error(status, message, param=param, code=code)
        self._add(body)
        self._keep(status, message)
        headers = [(b"content-type", JSON.encode()), (CALL_ID, self._call_id.encode())]
        if isinstance(error, LimitReached | ProviderError | EngineUnavailable) and error.retry_after_s is not None:
            headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
        await self._reply.whole(status, headers, body)

    async def _break_off(self, error: Exception) -> None:
        """Say why in the dialect, where the client has whole events so far, and leave the answer without its end."""
        whole = self._sent[-1].endswith(b"\n\n") if self._sent else False
        if whole and isinstance(self._dialect, ChatDialect):
            message = str(error) if isinstance(error, DoorstepError) else "Doorstep failed at this call; see its log."
            await self._reply.piece(self._dialect.stream_error(status_of(error)[0], message))
        self._reply.abort()

    # To the record

    def _keep(self, status: int, error: str | None, *, broken: bool = False) -> None:
        """Record the call, once; one that was not admitted is counted only, a joined one not at all."""
        if self._kept:
            return
        self._kept = True
        target = self._hit or (self._asking.last if self._asking else None)
        if not self._joined:
            self._count(target, status, broken)
        if target is None or self._head is None:
            return
        capture = self._capture(target, self._head, status, error)
        self._gateway.keep(capture, self._reservation)
        if error is None and self._flight is not None:
            self._flight.end()
        if self._wish is not None and self._hit is None and error is None and self._answer is not None:
            kind = self._answer.content_type
            body = capture.response
            self._gateway.cache.keep(
                self._wish, target, call_id=self._call_id, status=status, content_type=kind, body=body
            )

    def _count(self, target: Target | None, status: int, broken: bool) -> None:
        provider, model = (target.provider.name, target.model) if target else (NOBODY, "")
        seconds = time.monotonic() - self._clock
        first_s = None if self._first_us is None else (self._first_us - self._started_us) / 1_000_000
        metrics, hit = self._gateway.metrics, self._hit is not None
        metrics.count(self._dialect.NAME, provider, model, status, seconds, first_s, cached=hit, broken=broken)
        if self._asking is not None and self._asking.failed:
            metrics.count_tries(self._asking.failed, (provider, model) if status < 400 else None)

    def _capture(self, target: Target, head: Head, status: int, error: str | None) -> Capture:
        asked = self._asked
        answer = self._answer or (self._asking.answer if self._asking else None)
        customer = asked.headers.get(CUSTOMER)
        sent = self._sent
        return Capture(
            call_id=self._call_id,
            run_id=asked.run_id,
            dialect=self._dialect.NAME,
            requested_model=head.model,
            served_model=target.model,
            provider=target.provider.name,
            adapter=target.adapter,
            stream=head.stream,
            started_us=self._started_us,
            first_us=self._first_us,
            ended_us=ids.now_us(),
            status=status,
            error=error,
            request=asked.body,
            response=sent[0] if len(sent) == 1 else b"".join(sent),
            trace=answer.trace if answer else None,
            seen=answer.seen if answer else None,
            key_id=asked.caller.key_id or None,
            customer=customer.decode("latin-1") if customer else asked.caller.customer,
            upstream_dialect=answer.dialect if answer else None,
            upstream_id=answer.upstream_id if answer else None,
            attempts=self._asking.failed if self._asking else [],
            retry_of=self._retry_of,
            cached=self._hit is not None,
            units=head.units,
            gaps=["response_truncated"] if self._size > RECORDED_BYTES else [],
        )


async def _read_out(stream: Stream) -> bytes:
    """Read what comes after a stream's end mark, so that the connection upstream can be used again."""
    with suppress(TimeoutError, DoorstepError):
        async with asyncio.timeout(READ_OUT_S):
            return await stream.next()
    return b""


def status_of(error: Exception) -> tuple[int, str | None]:
    """Return the HTTP status of a failure, and its code for programs."""
    match error:
        case LimitReached():
            return error.status, error.code
        case NotFound():
            return 404, "model_not_found"
        case BadInput():
            return 400, "invalid_value"
        case UsageError():
            return 400, None
        case ProviderError():
            return error.status, "upstream_error"
        case EngineUnavailable():
            return 503, "engine_unavailable"
        case EngineError():
            return (400, None) if error.category == "user" else (500, "engine_error")
        case _:
            return 500, None
