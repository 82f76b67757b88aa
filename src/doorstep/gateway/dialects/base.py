"""What a dialect is: the one place where a wire format lives. A module with these functions is a dialect."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

import msgspec

from doorstep.gateway.chat import ChatRequest, Event


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway itself needs of a request. ``usage``: a stream is to end with its token counts."""

    model: str
    stream: bool
    usage: bool


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished answer says: the messages, and ``None`` for what it does not tell."""

    texts: list[str] = []
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class Dialect(Protocol):
    """Requests raise ``BadInput`` with the field as ``where``."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a constant of the module
        """How the record calls this dialect."""
        ...

    def head(self, body: bytes) -> Head:
        """Read what routing needs."""
        ...

    def read(self, body: bytes) -> ChatRequest:
        """Read a request for our own models; what they cannot serve is an error."""
        ...

    def write(
        self, events: AsyncGenerator[Event], *, head: Head, answer_id: str, model: str, request: ChatRequest
    ) -> AsyncGenerator[bytes]:
        """Yield an answer's bytes: all at once, or as they come when the request is for a stream."""
        ...

    def with_model(self, body: bytes, model: str) -> bytes:
        """Return the request with another model, every other value byte for byte as it was."""
        ...

    def is_last(self, piece: bytes) -> bool:
        """Tell whether a piece of a stream is its end, after which a client stops reading."""
        ...

    def understand(self, answer: bytes) -> Reading:
        """Read a finished answer, whole or a stream, also one that was cut off."""
        ...

    def messages(self, body: bytes) -> list[dict[str, Any]]:
        """Return the messages of a request as they were sent."""
        ...

    def sampling(self, body: bytes) -> dict[str, Any]:
        """Return the sampling settings of a request, for the record."""
        ...

    def error(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
        """Return an error's body."""
        ...
