"""What a dialect is: the one place where a wire format lives. A module with these functions is a dialect.

A *dialect* is the format of one address. All are bytes in, values out and back, and do no I/O. ``Dialect`` is what
every address has, also those for pictures and sound; ``ChatDialect`` adds what translating to another one takes.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from doorstep.gateway.chat import ChatRequest, Event, Usage


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway itself needs of a request.

    ``usage``: a stream is to end with its token counts. ``most_output``: tokens that the answer may have at most, for
    the reservation under a budget; None where the request does not say. ``units``: what is priced apart from tokens and
    can be told from the request, such as ``characters`` of a speech.
    """

    model: str
    stream: bool = False
    usage: bool = True
    most_output: int | None = None
    units: dict[str, float] = {}


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished answer says: its texts, and ``None`` for what it does not tell.

    ``messages`` are the answers in the dialect's own JSON, one each, where they hold more than text (tool calls, …).
    ``error`` is what an error event in the middle of a stream said; ``complete`` is whether the end mark was there.
    """

    texts: list[str] = []
    messages: list[dict[str, Any]] = []
    finish_reason: str | None = None
    usage: Usage = Usage()
    model: str | None = None  # as the provider named it
    error: str | None = None
    complete: bool = True


class Dialect(Protocol):
    """What every address has. Requests raise ``BadInput`` with the field as ``where``."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a constant of the module
        """How the record calls this dialect: ``openai.chat``, ``anthropic.messages``."""
        ...

    @property
    def PATH(self) -> str:  # noqa: N802
        """Its address under the gateway's root, such as ``/v1/chat/completions``."""
        ...

    def head(self, body: bytes) -> Head:
        """Read what routing needs; cheap, since every call pays it."""
        ...

    def with_model(self, body: bytes, model: str) -> bytes:
        """Return the request with another model, every other value byte for byte as it was."""
        ...

    def is_last(self, piece: bytes) -> bool:
        """Tell whether a piece of a stream holds its end mark, after which a client stops reading. Cheap."""
        ...

    def understand(self, answer: bytes) -> Reading:
        """Read a finished answer, whole or a stream, also one that was cut off."""
        ...

    def messages(self, body: bytes) -> Sequence[Mapping[str, Any]]:
        """Return the messages of a request as they were sent, each with its ``role``."""
        ...

    def sampling(self, body: bytes) -> dict[str, Any]:
        """Return the sampling settings of a request, for the record."""
        ...

    def error(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
        """Return an error's body."""
        ...


@runtime_checkable
class ChatDialect(Dialect, Protocol):
    """A dialect of chat, which can be translated to and from the others."""

    def read(self, body: bytes) -> ChatRequest:
        """Read a request."""
        ...

    def write(
        self, events: AsyncIterator[Event], *, head: Head, answer_id: str, model: str, request: ChatRequest
    ) -> AsyncIterator[bytes]:
        """Yield an answer's bytes: all at once, or as they come when the request is for a stream.

        What ends ``events`` early passes through; the caller closes them.
        """
        ...

    def write_request(self, request: ChatRequest, *, head: Head, model: str) -> bytes:
        """Write a request for a provider that speaks this dialect. A stream is asked to end with its usage."""
        ...

    def read_answer(self, pieces: AsyncIterator[bytes], *, stream: bool) -> AsyncIterator[Event]:
        """Yield a provider's answer as events; pieces may end anywhere, also inside a character.

        ``ProviderError`` for one that cannot be understood, breaks off without its end mark, or holds an error event.
        """
        ...

    def stream_error(self, status: int, message: str) -> bytes:
        """Return the error event that this dialect has for a stream that has begun; after it the connection breaks."""
        ...


def path_of(dialect: Dialect, model: str) -> str:
    """Return the address that a call has: its dialect's, or one of its own where the model is in it."""
    own: Callable[[str], str] | None = getattr(dialect, "upstream_path", None)
    return dialect.PATH if own is None else own(model)
