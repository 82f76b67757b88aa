"""What a provider is: one who answers calls for some models."""

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

import msgspec

from doorstep.gateway.chat import Trace
from doorstep.gateway.dialects.base import Dialect, Head


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One call as a provider gets it. ``model`` is the provider's own name, ``adapter`` the tinker:// path on ours."""

    dialect: Dialect
    head: Head
    body: bytes
    call_id: str
    model: str
    adapter: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that has begun.

    ``body`` raises ``ProviderError`` or ``EngineError`` when it breaks off; closing it cancels the work upstream.
    ``trace`` is filled in as the body goes, where our engine answers.
    """

    body: AsyncGenerator[bytes]
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}
    trace: Trace | None = None


class Provider(Protocol):
    """One who answers. ``name`` goes into the record and into prices."""

    @property
    def name(self) -> str:
        """The provider's name, as in ``NAME/MODEL``."""
        ...

    async def answer(self, ask: Ask) -> Answer:
        """Begin to answer; what fails before the first byte is a ``DoorstepError``."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


JSON = "application/json"
EVENT_STREAM = "text/event-stream"


def content_type(head: Head) -> str:
    """Return the content type of an answer that we write."""
    return EVENT_STREAM if head.stream else JSON
