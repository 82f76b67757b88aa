"""One call, from the request that was read to the record of what came of it.

Before the first byte a failure is an error that the client can read. After it the connection is broken off, never
ended cleanly, so that no client takes half an answer for a whole one. The call is kept before its last byte goes out.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from starlette.types import Send

from doorstep import ids
from doorstep.errors import BadInput, DoorstepError, EngineError, EngineUnavailable, NotFound, ProviderError, UsageError
from doorstep.gateway.capture import Capture
from doorstep.gateway.dialects.base import Dialect, Head
from doorstep.gateway.metrics import Metrics
from doorstep.gateway.models import Models, Target
from doorstep.gateway.providers.base import EVENT_STREAM, JSON, Answer, Ask
from doorstep.gateway.recorder import Recorder

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # as nginx notes it
READ_OUT_S = 0.05


class Exchange:
    """One call. ``serve`` answers it on ``send``; cancelling it cancels the work upstream and keeps what there was."""

    def __init__(
        self,
        *,
        models: Models,
        recorder: Recorder,
        metrics: Metrics,
        dialect: Dialect,
        body: bytes,
        run_id: str | None,
        send: Send,
    ) -> None:
        self._models = models
        self._recorder = recorder
        self._metrics = metrics
        self._dialect = dialect
        self._body = body
        self._run_id = run_id
        self._send = send
        self._call_id = ids.new_id("call")
        self._started_us, self._clock = ids.now_us(), time.monotonic()
        self._first_us: int | None = None
        self._sent: list[bytes] = []
        self._head: Head | None = None
        self._target: Target | None = None
        self._answer: Answer | None = None
        self._begun = False  # the client has a first byte
        self._kept = False

    async def serve(self) -> None:
        """Answer the call."""
        try:
            answer, first = await self._begin()
        except asyncio.CancelledError:
            self._keep(CLIENT_GONE, "the client went away before the first byte")
            raise
        except Exception as error:
            await self._refuse(error)
            return
        async with aclosing(answer.body):
            try:
                await self._relay(answer, first)
            except asyncio.CancelledError:
                self._keep(CLIENT_GONE, "the client went away")
                raise
            except Exception as error:
                if not self._begun:
                    await self._refuse(error)
                    return
                log.warning(
                    "call %s broke off: %s", self._call_id, error, exc_info=not isinstance(error, DoorstepError)
                )
                self._keep(answer.status, str(error), broken=True)  # and no last byte: the server breaks off

    async def _begin(self) -> tuple[Answer, bytes]:
        """Ask the provider and wait for its first byte."""
        self._head = self._dialect.head(self._body)
        self._target = self._models.resolve(self._head.model)
        ask = Ask(
            dialect=self._dialect,
            head=self._head,
            body=self._body,
            call_id=self._call_id,
            model=self._target.model,
            adapter=self._target.adapter,
        )
        answer = self._answer = await self._target.provider.answer(ask)
        first = await anext(answer.body, b"")
        self._first_us = ids.now_us()
        return answer, first

    async def _relay(self, answer: Answer, piece: bytes) -> None:
        if not answer.content_type.startswith(EVENT_STREAM):
            pieces = [piece]
            while piece := await anext(answer.body, b""):
                pieces.append(piece)
            await self._finish(answer, b"".join(pieces))
            return
        while piece and not self._dialect.is_last(piece):
            self._sent.append(piece)
            await self._send_piece(answer, piece, more=True)
            piece = await anext(answer.body, b"")
        if piece:
            await _read_out(answer.body)
        await self._finish(answer, piece)

    async def _finish(self, answer: Answer, last: bytes) -> None:
        self._sent.append(last)
        self._keep(answer.status, None if answer.status < 400 else last.decode("utf-8", "replace")[:500])
        await self._send_piece(answer, last, more=False)

    async def _send_piece(self, answer: Answer, piece: bytes, *, more: bool) -> None:
        if not self._begun:
            self._begun = True
            headers = {**answer.headers, "x-doorstep-call-id": self._call_id}
            await self._send(_start(answer.status, answer.content_type, headers))
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _refuse(self, error: Exception) -> None:
        """Answer with an error in the dialect's shape."""
        if not isinstance(error, DoorstepError):
            log.exception("call %s", self._call_id, exc_info=error)
        status, code = _status(error)
        message = str(error) if isinstance(error, DoorstepError) else "Doorstep failed at this call; see its log."
        param = error.where if isinstance(error, BadInput) else "model" if isinstance(error, NotFound) else None
        body = self._dialect.error(status, message, param=param, code=code)
        self._sent.append(body)
        self._keep(status, message)
        await self._send(_start(status, JSON, {"x-doorstep-call-id": self._call_id}))
        await self._send({"type": "http.response.body", "body": body})

    def _keep(self, status: int, error: str | None, *, broken: bool = False) -> None:
        """Record the call, once; one that reached nobody who could answer is counted only."""
        if self._kept:
            return
        self._kept = True
        provider = self._target.provider.name if self._target else "none"
        self._metrics.count(provider, status, time.monotonic() - self._clock, broken=broken)
        if self._target is None or self._head is None:
            return
        self._recorder.put(
            Capture(
                call_id=self._call_id,
                run_id=self._run_id,
                dialect=self._dialect.NAME,
                requested_model=self._head.model,
                served_model=self._target.model,
                provider=provider,
                adapter=self._target.adapter,
                stream=self._head.stream,
                started_us=self._started_us,
                first_us=self._first_us,
                ended_us=ids.now_us(),
                status=status,
                error=error,
                request=self._body,
                response=b"".join(self._sent),
                trace=self._answer.trace if self._answer else None,
            )
        )


async def _read_out(body: AsyncGenerator[bytes]) -> None:
    """Read what comes after a stream's end mark, so that the connection upstream can be used again."""
    with suppress(TimeoutError, DoorstepError):
        async with asyncio.timeout(READ_OUT_S):
            await anext(body, b"")


def _status(error: Exception) -> tuple[int, str | None]:
    """Return the HTTP status of a failure, and its code for programs."""
    match error:
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


def _start(status: int, content_type: str, headers: Mapping[str, str]) -> dict[str, object]:
    listed = {"content-type": content_type, "cache-control": "no-store", **headers}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in listed.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}
