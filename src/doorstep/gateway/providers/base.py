"""What a provider is: one who answers calls for some models."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Protocol

import msgspec

from doorstep.gateway.chat import Seen, Trace
from doorstep.gateway.dialects.base import Dialect, Head

JSON = "application/json"
EVENT_STREAM = "text/event-stream"


class Key(msgspec.Struct, frozen=True):
    """A provider's key; ``label`` is what may be shown of it, the name of its environment variable."""

    label: str
    secret: str


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One call as a provider gets it.

    ``model`` is the provider's own name, ``adapter`` the tinker:// path on ours. ``headers`` are the client's, names in
    lower case. ``key`` is which of the provider's keys to use, the first where it is not said. ``key_id`` is the key
    that the client called with, empty for the machine's own user.
    """

    dialect: Dialect
    head: Head
    body: bytes
    call_id: str
    model: str
    adapter: str | None = None
    headers: Mapping[bytes, bytes] = {}
    key: Key | None = None
    key_id: str = ""


class Stream(Protocol):
    """A body that comes over time."""

    async def next(self) -> bytes:
        """Return what has come since the last time; ``b""`` at the clean end.

        ``ProviderError`` or ``EngineError`` when it breaks off.
        """
        ...

    async def close(self) -> None:
        """Give it up, which cancels the work upstream; after the end it does nothing."""
        ...


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that has begun, or is there as a whole.

    ``trace`` is filled in as the body goes, where our engine answers, ``seen`` where the client is sent less than came.
    ``upstream_id`` is the provider's id of the call; ``dialect`` names the dialect that the provider speaks, where that
    is not the client's.
    """

    body: bytes | Stream
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = {}
    trace: Trace | None = None
    seen: Seen | None = None
    upstream_id: str | None = None
    dialect: str | None = None


class Provider(Protocol):
    """One who answers. ``name`` goes into the record and into prices; ``keys`` are those that it may be asked with."""

    @property
    def name(self) -> str:
        """The provider's name, as in ``NAME/MODEL``."""
        ...

    @property
    def keys(self) -> tuple[Key, ...]:
        """Its keys; none where it needs none."""
        ...

    async def answer(self, ask: Ask) -> Answer:
        """Begin to answer; what fails before the first byte is a ``DoorstepError``."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class GeneratorStream:
    """A stream out of an async generator."""

    def __init__(self, pieces: AsyncGenerator[bytes]) -> None:
        self._pieces = pieces

    async def next(self) -> bytes:
        """Return the next piece."""
        return await anext(self._pieces, b"")

    async def close(self) -> None:
        """Close the generator."""
        await self._pieces.aclose()


def from_generator(pieces: AsyncGenerator[bytes]) -> Stream:
    """Return a stream out of an async generator that yields no empty piece."""
    return GeneratorStream(pieces)


async def pieces_of(body: bytes | Stream) -> AsyncIterator[bytes]:
    """Yield a body piece by piece; the stream stays open."""
    if isinstance(body, bytes):
        yield body
        return
    while piece := await body.next():
        yield piece


def content_type(head: Head) -> str:
    """Return the content type of an answer that we write."""
    return EVENT_STREAM if head.stream else JSON
