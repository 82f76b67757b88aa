"""Chats in a dialect that a provider does not speak, had in one that it does: request, answer and errors.

Both ways lead through the canonical values of ``chat``. Streams stay streams. What cannot be said in the other dialect
is the client's ``BadInput``, which names the field, before anything is sent.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol, cast

import msgspec

from doorstep.gateway.chat import Event, Seen, Usage
from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import ChatDialect
from doorstep.gateway.providers.base import EVENT_STREAM, JSON, Answer, Ask, Provider, Stream, content_type, pieces_of


class Speaker(Provider, Protocol):
    """A provider that takes some dialects as they are."""

    def speaks(self, dialect: str) -> bool:
        """Tell whether it takes a dialect as it is."""
        ...


class Translated:
    """A provider that chats in ``dialect`` with those who speak to it in one that it does not know."""

    def __init__(self, provider: Speaker, dialect: ChatDialect) -> None:
        self.name = provider.name
        self.keys = provider.keys
        self._provider = provider
        self._dialect = dialect

    async def answer(self, ask: Ask) -> Answer:
        """Pass the call on, translated where it has to be."""
        if self._provider.speaks(ask.dialect.NAME) or not isinstance(ask.dialect, ChatDialect):
            return await self._provider.answer(ask)
        theirs, ours = ask.dialect, self._dialect
        request = theirs.read(ask.body)
        sent = msgspec.structs.replace(
            ask,
            dialect=ours,
            head=msgspec.structs.replace(ask.head, model=ask.model),
            body=ours.write_request(request, head=ask.head, model=ask.model),
        )
        answer = await self._provider.answer(sent)
        if answer.status >= 400:
            body: bytes | Stream = theirs.error(answer.status, await _said(answer))
            return msgspec.structs.replace(answer, body=body, content_type=JSON, dialect=ours.NAME)
        seen = Seen()
        stream = answer.content_type.startswith(EVENT_STREAM)
        events = _noting(ours.read_answer(pieces_of(answer.body), stream=stream), seen)
        pieces = theirs.write(events, head=ask.head, answer_id=ask.call_id, model=ask.model, request=request)
        body = _Translation(answer.body, events, pieces)
        if not ask.head.stream:
            body = await _read(body)
        kind = content_type(ask.head)
        return msgspec.structs.replace(answer, body=body, content_type=kind, dialect=ours.NAME, seen=seen)

    async def close(self) -> None:
        """Let go of connections."""
        await self._provider.close()


class _Translation:
    """An answer on its way from one dialect to another."""

    def __init__(self, body: bytes | Stream, events: AsyncIterator[Event], pieces: AsyncIterator[bytes]) -> None:
        self._body = body
        self._events = events
        self._pieces = pieces

    async def next(self) -> bytes:
        """Return the next piece."""
        return await anext(self._pieces, b"")

    async def close(self) -> None:
        """Give it up, from the client's side to the upstream's."""
        for generator in (self._pieces, self._events):
            await cast("AsyncGenerator[Any]", generator).aclose()
        if not isinstance(self._body, bytes):
            await self._body.close()


async def _noting(events: AsyncIterator[Event], seen: Seen) -> AsyncGenerator[Event]:
    """Pass events on; what was used is noted, since the client may not have asked for it."""
    async with aclosing(cast("AsyncGenerator[Event]", events)) as inner:
        async for event in inner:
            if isinstance(event, Usage):
                seen.usage = event
            yield event


async def _read(body: Stream) -> bytes:
    pieces = []
    try:
        while piece := await body.next():
            pieces.append(piece)
    finally:
        await body.close()
    return b"".join(pieces)


async def _said(answer: Answer) -> str:
    """Return an upstream's own words about its error, in whatever shape they are."""
    body = answer.body if isinstance(answer.body, bytes) else await _read(answer.body)
    return wire.error_words(body) or f"status {answer.status}, without a word"
