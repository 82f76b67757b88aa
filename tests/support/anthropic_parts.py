"""What the tests of Anthropic's dialect share: golden files, events as JSON, and answers cut into pieces."""

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec

from doorstep.gateway.chat import ChatRequest, Delta, Event, Message, RefusalDelta, Text, ThinkingDelta, ToolCallDelta
from doorstep.gateway.dialects import anthropic_messages
from doorstep.gateway.dialects.base import ChatDialect, Head

GOLDEN = Path(__file__).parents[1] / "gateway" / "golden" / "anthropic"
ASKED = ChatRequest(messages=[Message(role="user", blocks=[Text(text="Hello")])])


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


async def pieces(data: bytes, size: int | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size or len(data) or 1):
        yield data[start : start + (size or len(data))]


async def given(events: Iterable[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


async def read(
    data: bytes, *, stream: bool, size: int | None = None, dialect: ChatDialect = anthropic_messages
) -> list[Event]:
    return [event async for event in dialect.read_answer(pieces(data, size), stream=stream)]


async def write(
    events: Iterable[Event], *, stream: bool, dialect: ChatDialect = anthropic_messages, request: ChatRequest = ASKED
) -> bytes:
    head = Head(model="m", stream=stream)
    out = dialect.write(given(events), head=head, answer_id="call_1", model="claude", request=request)
    return b"".join([piece async for piece in out])


def as_json(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Events as JSON, without what is not said."""
    return [
        {"event": type(event).__name__}
        | {name: value for name, value in msgspec.to_builtins(event).items() if value not in (None, [], {}, "")}
        for event in events
    ]


def merged(events: Iterable[Event]) -> list[Event]:
    """The same answer with each run of deltas as one; the id of a reasoning item may come late in its block."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, Delta | RefusalDelta) and isinstance(last, type(event)):
            out[-1] = msgspec.structs.replace(last, text=last.text + event.text)
        elif isinstance(event, ToolCallDelta) and isinstance(last, ToolCallDelta) and last.call == event.call:
            out[-1] = msgspec.structs.replace(last, arguments=last.arguments + event.arguments)
        elif (
            isinstance(event, ThinkingDelta)
            and isinstance(last, ThinkingDelta)
            and not (event.redacted or last.redacted or last.signature)
            and (event.id in (None, last.id) or (last.id is None and not event.text))
        ):
            out[-1] = ThinkingDelta(0, last.text + event.text, event.signature, None, last.id or event.id)
        else:
            out.append(event)
    return out
