"""Answers of OpenAI's Responses as they are read: those to translate, and those that only passed through."""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, TypeVar, cast

import msgspec

from doorstep.errors import ProviderError
from doorstep.gateway.chat import (
    Begin,
    Delta,
    End,
    Event,
    Reason,
    RefusalDelta,
    SampledText,
    ThinkingDelta,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from doorstep.gateway.dialects import openai_responses_seals as seals
from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import Reading
from doorstep.gateway.dialects.openai_responses_requests import PARAGRAPH

_T = TypeVar("_T")


async def read_answer(pieces: AsyncIterator[bytes], *, stream: bool) -> AsyncIterator[Event]:
    """Yield a provider's answer as events."""
    reader = _AnswerReader()
    if not stream:
        answer = b"".join([piece async for piece in pieces])
        for event in reader.finish(_parse(_responses, answer)):
            yield event
        return
    async with aclosing(cast("Any", wire.event_data(pieces))) as events:
        async for data in events:
            for event in reader.take(data):
                yield event
            if reader.finished:
                return
    raise ProviderError("the provider's stream broke off before the end of the answer")


def understand(answer: bytes) -> Reading:
    """Read a finished answer, whole or a stream, also one that was cut off; what is not there stays unknown."""
    if not answer.lstrip().startswith(b"{"):
        return _understand_stream(answer)
    try:
        return _reading(_responses.decode(answer))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Reading(complete=False)


class _Token(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[Annotated[int, msgspec.Meta(ge=0, le=255)]] | None = None
    top_logprobs: list["_Token"] | None = None


class _AnswerPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None
    logprobs: list[_Token] | None = None


class _AnswerItem(msgspec.Struct, frozen=True):
    """An item that is asked for: a message, reasoning or a function call."""

    type: str
    id: str | None = None
    content: list[_AnswerPart] | None = None
    summary: list[_AnswerPart] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Counts(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Failure(msgspec.Struct, frozen=True):
    message: str | None = None
    code: str | int | None = None
    type: str | None = None


class _Why(msgspec.Struct, frozen=True):
    reason: str | None = None


class _Response(msgspec.Struct, frozen=True):
    id: str | None = None
    model: str | None = None
    status: str | None = None
    error: _Failure | None = None
    incomplete_details: _Why | None = None
    output: list[dict[str, Any]] | None = None
    usage: _Counts | None = None


class _StreamEvent(msgspec.Struct, frozen=True):
    type: str
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0
    item_id: str | None = None
    delta: str | None = None
    logprobs: list[_Token] | None = None
    item: dict[str, Any] | None = None
    response: _Response | None = None
    error: _Failure | None = None
    message: str | None = None
    code: str | int | None = None


_responses = msgspec.json.Decoder(_Response)
_stream_events = msgspec.json.Decoder(_StreamEvent)
_LAST = ("response.completed", "response.incomplete", "response.failed")


def _parse(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProviderError(f"the provider's answer cannot be read: {error}") from None


class _AnswerReader:
    """Turns a provider's response, or the events of its stream, into events of ours."""

    def __init__(self) -> None:
        self.finished = False
        self._begun = False
        self._calls: dict[int, int] = {}  # number of the call, by the item's index
        self._told: set[int] = set()  # indices of items of which a part came already
        self._closed: set[int] = set()
        self._part: dict[int, tuple[str, int]] = {}  # part of the reasoning that came last
        self._refused = False

    def take(self, data: bytes) -> Iterator[Event]:
        if data == b"[DONE]":  # some servers end with it; our end mark is the response's own
            return
        event = _parse(_stream_events, data)
        if event.type == "error":
            raise _failed(event.error or _Failure(message=event.message, code=event.code))
        if event.type in _LAST:
            yield from self.finish(event.response or _Response())
        elif event.type in ("response.created", "response.in_progress"):
            yield from self._begin(event.response or _Response())
        elif event.type == "response.output_item.added":
            yield from self._open(event.output_index, _known(event.item or {}))
        elif event.type == "response.output_item.done":
            yield from self._item(event.output_index, _known(event.item or {}))
        elif event.delta is not None:
            yield from self._more(event, event.delta)

    def finish(self, response: _Response) -> Iterator[Event]:
        """Yield what is left: all of a whole response, the end of one that was streamed."""
        self.finished = True
        if response.error is not None or response.status in ("failed", "cancelled"):
            raise _failed(response.error or _Failure(message=f"the provider's answer was {response.status}"))
        streamed = bool(self._told | self._closed)
        if response.status not in ("completed", "incomplete") or (response.output is None and not streamed):
            raise ProviderError("the provider gave no complete response")
        yield from self._begin(response)
        for index, item in enumerate([] if streamed else response.output or []):
            yield from self._item(index, _known(item))
        yield End(0, _reason(response, called=bool(self._calls), refused=self._refused))
        yield _usage(response.usage or _Counts())

    def _begin(self, response: _Response) -> Iterator[Event]:
        if not self._begun:
            self._begun = True
            yield Begin(response.id, response.model)

    def _open(self, index: int, item: _AnswerItem) -> Iterator[Event]:
        if item.type == "function_call" and index not in self._calls:
            self._calls[index] = len(self._calls)
            if item.call_id is None or item.name is None:
                raise ProviderError("the provider asks for a tool without saying its name and the call's id")
            yield ToolCallBegin(0, self._calls[index], item.call_id, item.name)

    def _more(self, event: _StreamEvent, delta: str) -> Iterator[Event]:
        index = event.output_index
        self._told.add(index)
        if event.type == "response.output_text.delta":
            yield Delta(0, delta, [_read_token(token) for token in event.logprobs or []])
        elif event.type == "response.refusal.delta":
            self._refused = True
            yield RefusalDelta(0, delta)
        elif event.type == "response.function_call_arguments.delta":
            if index not in self._calls:
                raise ProviderError("the provider gives arguments of a call that has not begun")
            yield ToolCallDelta(0, self._calls[index], delta)
        elif event.type == "response.reasoning_summary_text.delta":
            yield self._thinking(event, ("summary", event.summary_index), delta)
        elif event.type == "response.reasoning_text.delta":
            yield self._thinking(event, ("content", event.content_index), delta)

    def _thinking(self, event: _StreamEvent, part: tuple[str, int], text: str) -> ThinkingDelta:
        before = self._part.get(event.output_index, part)
        self._part[event.output_index] = part
        return ThinkingDelta(0, text if before == part else PARAGRAPH + text, id=event.item_id)

    def _item(self, index: int, item: _AnswerItem) -> Iterator[Event]:
        """Yield what an item says beyond what its stream has told: all of it, or only the seal."""
        if index in self._closed:
            return
        self._closed.add(index)
        yield from self._open(index, item)
        told = index in self._told
        if item.type == "reasoning":
            yield from _reasoning_events(item, told)
        elif item.type == "function_call" and item.arguments and not told:
            yield ToolCallDelta(0, self._calls[index], item.arguments)
        elif item.type == "message" and not told:
            for part in item.content or []:
                if part.refusal is not None:
                    self._refused = True
                    yield RefusalDelta(0, part.refusal)
                elif part.text:
                    yield Delta(0, part.text, [_read_token(token) for token in part.logprobs or []])


def _known(item: dict[str, Any]) -> _AnswerItem:
    kind = item.get("type")
    if kind not in ("message", "reasoning", "function_call"):
        raise ProviderError(f"the provider's answer holds an item of type {kind!r}, which was not asked for")
    try:
        return msgspec.convert(item, _AnswerItem)
    except msgspec.ValidationError as error:
        raise ProviderError(f"the provider's answer cannot be read: {error}") from None


def _reasoning_events(item: _AnswerItem, told: bool) -> Iterator[Event]:
    text = PARAGRAPH.join(part.text for part in (*(item.summary or []), *(item.content or [])) if part.text)
    signature, redacted = seals.canonical(item.encrypted_content, text)
    if text and not told:
        yield ThinkingDelta(0, text, id=item.id)
    if signature is not None or redacted is not None:
        yield ThinkingDelta(0, signature=signature, redacted=redacted, id=item.id)


def _read_token(token: _Token) -> SampledText:
    data = token.token.encode() if token.bytes is None else bytes(token.bytes)
    return SampledText(token.token, data, token.logprob, [_read_token(other) for other in token.top_logprobs or []])


def _reason(response: _Response, *, called: bool, refused: bool) -> Reason:
    if response.status == "incomplete":
        why = response.incomplete_details.reason if response.incomplete_details else None
        return "content_filter" if why == "content_filter" else "length"
    return "tool_calls" if called else "refusal" if refused else "stop"


def _usage(counts: _Counts) -> Usage:
    input_details = counts.input_tokens_details or _Details()
    output_details = counts.output_tokens_details or _Details()
    return Usage(
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        cached_tokens=input_details.cached_tokens,
        cache_write_tokens=input_details.cache_write_tokens,
        reasoning_tokens=output_details.reasoning_tokens,
    )


_REQUEST_FAULT = re.compile(r"invalid|image|policy|context_length|data_residency")


def _failed(failure: _Failure) -> ProviderError:
    kind = f"{failure.code} {failure.type}"
    message = failure.message or "the provider failed without saying why"
    if "rate_limit" in kind or "insufficient_quota" in kind:
        return ProviderError(message, 429)
    if _REQUEST_FAULT.search(kind):
        return ProviderError(message, 400, retryable=False)
    return ProviderError(message)


# Understanding answers that passed through, also such as cannot be translated


def _understand_stream(answer: bytes) -> Reading:
    lines = [line[5:].strip() for line in answer.splitlines() if line.startswith(b"data:")]
    for line in reversed(lines):
        event = _try_event(line)
        if event is not None and event.type in _LAST and event.response is not None:
            return _reading(event.response)
        if event is not None:
            break
    return _understand_cut([event for line in lines if (event := _try_event(line)) is not None])


def _try_event(line: bytes) -> _StreamEvent | None:
    try:
        return _stream_events.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _understand_cut(events: list[_StreamEvent]) -> Reading:
    words = [event.delta for event in events if event.type == "response.output_text.delta" and event.delta]
    models = [event.response.model for event in events if event.response is not None]
    errors = [event.error or _Failure(message=event.message) for event in events if event.type == "error"]
    return Reading(
        texts=["".join(words)] if words else [],
        model=models[0] if models else None,
        error=str(_failed(errors[0])) if errors else None,
        complete=False,
    )


def _reading(response: _Response) -> Reading:
    output = response.output or []
    parts = [part for item in output if item.get("type") == "message" for part in _parts(item)]
    words = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    called = any(item.get("type") == "function_call" for item in output)
    refused = any("refusal" in part for part in parts)
    ended = response.status in ("completed", "incomplete")
    plain = len(output) == 1 and not refused and output[0].get("type") == "message"
    return Reading(
        texts=["".join(words)] if response.output is not None else [],
        messages=[{"role": "assistant", "output": output}] if output and not plain else [],
        finish_reason=_reason(response, called=called, refused=refused) if ended else None,
        usage=_usage(response.usage or _Counts()),
        model=response.model,
        error=None if response.error is None else str(_failed(response.error)),
        complete=ended,
    )


def _parts(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = item.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
