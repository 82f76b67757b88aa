"""What tests of dialects share: pieces to feed, events to compare."""

import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from doorstep.gateway.chat import Begin, Delta, RefusalDelta, ThinkingDelta, ToolCallDelta

T = TypeVar("T")


async def pieces(values: Iterable[T]) -> AsyncIterator[T]:
    for value in values:
        yield value


async def collect(values: AsyncIterator[T]) -> list[T]:
    return [value async for value in values]


def as_json(events: Iterable[Any]) -> list[dict[str, Any]]:
    """Return events as JSON, each with its name."""
    return [{"event": type(event).__name__, **msgspec.to_builtins(event)} for event in events]


def cut(body: bytes, places: Sequence[int]) -> list[bytes]:
    """Cut bytes at the places, taken modulo the length."""
    ends = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(ends)]


def merged(events: Iterable[Any]) -> list[Any]:
    """Return events with neighbours of one kind joined, without the beginning and without empty ones."""
    found: list[Any] = []
    for event in events:
        joined = found and _joined(found[-1], event)
        if joined:
            found[-1] = joined
        elif not isinstance(event, Begin) and not _empty(event):
            found.append(event)
    return found


def _empty(event: Any) -> bool:
    if isinstance(event, ThinkingDelta):
        return not (event.text or event.signature or event.redacted)
    return isinstance(event, Delta | RefusalDelta) and not (event.text or getattr(event, "tokens", []))


def _joined(last: Any, event: Any) -> Any:
    if type(last) is not type(event) or getattr(last, "index", None) != getattr(event, "index", None):
        return None
    match event:
        case Delta():
            return Delta(event.index, last.text + event.text, last.tokens + event.tokens)
        case RefusalDelta():
            return RefusalDelta(event.index, last.text + event.text)
        case ThinkingDelta() if last.signature is None and last.redacted is None and event.redacted is None:
            return ThinkingDelta(event.index, last.text + event.text, event.signature, None, last.id or event.id)
        case ToolCallDelta() if last.call == event.call:
            return ToolCallDelta(event.index, event.call, last.arguments + event.arguments)
    return None
