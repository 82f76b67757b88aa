"""Answers of Anthropic's messages, whole and streamed, to and from canonical events; and what finished ones say.

A whole answer is written as what the events of its stream add up to, and read as blocks that begin with all they hold.
The words of a refusal are ``stop_details.explanation``.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

import msgspec

from doorstep.errors import ProviderError
from doorstep.gateway.chat import (
    Begin,
    ChatRequest,
    Delta,
    End,
    Event,
    Reason,
    RefusalDelta,
    ThinkingDelta,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.anthropic_wire import with_item, without_item
from doorstep.gateway.dialects.base import Head, Reading

STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}

_REASON: dict[str, Reason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
    "refusal": "refusal",
}
_STOP_REASON: dict[Reason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "pause": "pause_turn",
    "refusal": "refusal",
    "content_filter": "refusal",
}

_T = TypeVar("_T")


# Writing answers


class _Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event of a stream as it is on the wire; a whole answer is what its events add up to."""

    type: str
    message: dict[str, Any] | None = None
    index: int | None = None
    content_block: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


async def write(
    events: AsyncIterator[Event],
    *,
    head: Head,
    answer_id: str,
    model: str,
    request: ChatRequest,  # noqa: ARG001
) -> AsyncIterator[bytes]:
    """Yield an answer's bytes: all at once, or as they come when the request is for a stream."""
    writer = _AnswerWriter(f"msg_{answer_id}", model)
    written: list[_Event] = []
    async for event in events:
        written += writer.take(event)
        if head.stream and written:
            yield _encode(written)
            written = []
    written += writer.end()
    yield _encode(written) if head.stream else msgspec.json.encode(_whole(written))


def _encode(events: Iterable[_Event]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (event.type.encode(), msgspec.json.encode(event)) for event in events)


def _whole(events: list[_Event]) -> dict[str, Any]:
    message = _add_up(events)
    for block in message["content"]:
        if isinstance(text := block.get("input"), str):
            if isinstance(_arguments(text), str):
                raise ProviderError(f"the model gave the tool {block['name']} something other than a JSON object")
            block["input"] = msgspec.Raw(text.encode())
    return message


class _Call:
    """A tool call whose block is open."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.arguments: list[str] = []

    def is_complete(self) -> bool:
        """Tell whether nothing can follow: the arguments are a JSON object."""
        try:
            _whole_answers.decode("".join(self.arguments))
        except (msgspec.DecodeError, RecursionError):
            return False
        return True


class _AnswerWriter:
    """Divides an answer into blocks: one kind each, numbered, and one after the other.

    Only tool calls may overlap: other dialects may send their arguments by turns. The block of a call stays open until
    its arguments are complete.
    """

    def __init__(self, answer_id: str, model: str) -> None:
        self._message: dict[str, Any] = {
            "id": answer_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},  # the truth comes at the end
        }
        self._begun = False
        self._blocks = 0
        self._open: str | None = None  # kind of the newest block, text or thinking
        self._item: str | None = None  # id of the reasoning item that the open block is
        self._calls: dict[int, _Call] = {}
        self._called = False
        self._refusal: list[str] = []
        self._end: End | None = None
        self._usage = Usage()

    def take(self, event: Event) -> list[_Event]:
        """Return what an event adds to the stream."""
        out: list[_Event] = []
        if not self._begun:
            self._begun = True
            out.append(_Event(type="message_start", message=self._message))
        if isinstance(event, Delta):
            if event.text:
                out += self._enter("text", {"text": ""})
                out.append(self._delta(self._blocks - 1, "text_delta", text=event.text))
        elif isinstance(event, ThinkingDelta):
            out += self._think(event)
        elif isinstance(event, ToolCallBegin):
            out += self._leave()
            out.append(self._start("tool_use", {"id": event.id, "name": event.name, "input": {}}))
            self._calls[event.call] = _Call(self._blocks - 1)
            self._called = True
        elif isinstance(event, ToolCallDelta):
            out += self._argue(event)
        elif isinstance(event, RefusalDelta):
            self._refusal.append(event.text)
        elif isinstance(event, End):
            self._end = event
        elif isinstance(event, Usage):
            self._usage = event
        return out

    def end(self) -> list[_Event]:
        """Return what closes the stream; an answer that was not ended has no end to write."""
        if self._end is None:
            raise ProviderError("the answer stopped before its end")
        delta: dict[str, Any] = {"stop_reason": self._stop_reason(self._end), "stop_sequence": self._end.stop_sequence}
        if self._refusal:
            delta["stop_details"] = {"type": "refusal", "category": None, "explanation": "".join(self._refusal)}
        return [
            *self._leave(every=True),
            _Event(type="message_delta", delta=delta, usage=_write_usage(self._usage)),
            _Event(type="message_stop"),
        ]

    def _stop_reason(self, end: End) -> str:
        if self._refusal:
            return "refusal"
        if end.reason == "stop" and self._called:
            return "tool_use"  # OpenAI says stop where the client had named the tool
        if end.reason == "stop" and end.stop_sequence is not None:
            return "stop_sequence"
        return _STOP_REASON[end.reason]

    def _argue(self, event: ToolCallDelta) -> list[_Event]:
        call = self._calls.get(event.call)
        if call is None:
            if event.arguments.strip():
                raise ProviderError("the model wrote on in the arguments of a tool call that were complete")
            return []
        call.arguments.append(event.arguments)
        return [self._delta(call.index, "input_json_delta", partial_json=event.arguments)]

    def _think(self, event: ThinkingDelta) -> list[_Event]:
        out: list[_Event] = []
        if event.redacted is not None:
            out += self._leave()
            out.append(self._start("redacted_thinking", {"data": with_item(event.id, event.redacted)}))
            out.append(_Event(type="content_block_stop", index=self._blocks - 1))
            return out
        if self._item is not None and event.id not in (None, self._item):
            out += self._leave()
        out += self._enter("thinking", {"thinking": "", "signature": ""})
        self._item = event.id or self._item
        if event.text:
            out.append(self._delta(self._blocks - 1, "thinking_delta", thinking=event.text))
        if event.signature is not None:
            signature, self._item = with_item(self._item, event.signature), None
            out.append(self._delta(self._blocks - 1, "signature_delta", signature=signature))
            out += self._leave()
        return out

    def _enter(self, kind: str, empty: dict[str, Any]) -> list[_Event]:
        """Be in a block of this kind."""
        if self._open == kind:
            return []
        out = [*self._leave(), self._start(kind, empty)]
        self._open = kind
        return out

    def _leave(self, *, every: bool = False) -> list[_Event]:
        """Close the open block of text or thinking, and of the tool calls those that are complete, or every one."""
        out: list[_Event] = []
        if self._item is not None:
            out.append(self._delta(self._blocks - 1, "signature_delta", signature=with_item(self._item, "")))
        if self._open is not None:
            out.append(_Event(type="content_block_stop", index=self._blocks - 1))
        self._open = self._item = None
        done = [number for number, call in self._calls.items() if every or call.is_complete()]
        out += [_Event(type="content_block_stop", index=self._calls.pop(number).index) for number in done]
        return out

    def _start(self, kind: str, fields: dict[str, Any]) -> _Event:
        self._blocks += 1
        return _Event(type="content_block_start", index=self._blocks - 1, content_block={"type": kind} | fields)

    def _delta(self, index: int, kind: str, **said: str) -> _Event:
        return _Event(type="content_block_delta", index=index, delta={"type": kind} | said)


def _write_usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's input tokens are those that no cache had a part in. What is not known must be a number, and is 0."""
    cached = (usage.cached_tokens or 0) + (usage.cache_write_tokens or 0)
    written: dict[str, Any] = {
        "input_tokens": max((usage.input_tokens or 0) - cached, 0),
        "output_tokens": usage.output_tokens or 0,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
    }
    if usage.reasoning_tokens is not None:
        written["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return written


# Reading answers


class _Counts(msgspec.Struct, frozen=True):
    """Counts of tokens; the later ones of a stream replace those before them, where they are said."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: dict[str, Any] | None = None

    def then(self, later: "_Counts | None") -> "_Counts":
        if later is None:
            return self
        said = {name: value for name, value in msgspec.structs.asdict(later).items() if value is not None}
        return msgspec.structs.replace(self, **said)

    def usage(self) -> Usage:
        """Return all of the input, cached or not. No prompt has 0 tokens: that is how a stream says "not known"."""
        parts = (self.input_tokens, self.cache_creation_input_tokens, self.cache_read_input_tokens)
        whole = sum(part or 0 for part in parts)
        thought = (self.output_tokens_details or {}).get("thinking_tokens")
        return Usage(
            input_tokens=whole or None,
            output_tokens=(self.output_tokens if whole else self.output_tokens or None),
            cached_tokens=self.cache_read_input_tokens,
            cache_write_tokens=self.cache_creation_input_tokens,
            reasoning_tokens=thought if isinstance(thought, int) else None,
        )


class _Details(msgspec.Struct, frozen=True):
    explanation: str | None = None


class _GotBlock(msgspec.Struct, frozen=True):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str | None = None
    data: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _GotDelta(msgspec.Struct, frozen=True):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _Details | None = None


class _GotMessage(msgspec.Struct, frozen=True):
    id: str | None = None
    model: str | None = None
    content: list[_GotBlock] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _Details | None = None
    usage: _Counts | None = None


class _Got(msgspec.Struct, frozen=True):
    type: str
    message: _GotMessage | None = None
    index: int = 0
    content_block: _GotBlock | None = None
    delta: _GotDelta | None = None
    usage: _Counts | None = None
    error: Any = None


class _GotWhole(_GotMessage, frozen=True):
    type: str = ""
    error: Any = None


_got = msgspec.json.Decoder(_Got)
_got_whole = msgspec.json.Decoder(_GotWhole)
_seen = msgspec.json.Decoder(_Event)


async def read_answer(pieces: AsyncIterator[bytes], *, stream: bool) -> AsyncIterator[Event]:
    """Yield a provider's answer as events; pieces may end anywhere."""
    reader = _AnswerReader()
    if not stream:
        for event in reader.take_whole(_provided(b"".join([piece async for piece in pieces]), _got_whole)):
            yield event
        return
    async for data in wire.event_data(pieces):
        for event in reader.take(_provided(data, _got)):
            yield event
        if reader.ended:
            return
    raise ProviderError("the provider's stream broke off before its end")


def _provided(data: bytes, decoder: "msgspec.json.Decoder[_T]") -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProviderError(f"the provider's answer cannot be understood: {error}") from None


class _AnswerReader:
    """Understands an answer event by event. A whole answer is read as blocks that begin with all of their content."""

    def __init__(self) -> None:
        self.ended = False
        self._calls: dict[int, int] = {}  # block to tool call
        self._empty: set[int] = set()  # blocks of tool calls without arguments so far
        self._counts = _Counts()
        self._last = _GotDelta()  # why it ended

    def take_whole(self, message: _GotWhole) -> list[Event]:
        """Return the events of a whole answer."""
        if message.type == "error":
            raise _failure(message.error)
        if message.type != "message":
            raise ProviderError("the provider's answer is not a message")
        last = _GotDelta(
            stop_reason=message.stop_reason, stop_sequence=message.stop_sequence, stop_details=message.stop_details
        )
        got = [_Got(type="message_start", message=message)]
        for index, block in enumerate(message.content):
            got.append(_Got(type="content_block_start", index=index, content_block=block))
            got.append(_Got(type="content_block_stop", index=index))
        got += [_Got(type="message_delta", delta=last), _Got(type="message_stop")]
        return [event for part in got for event in self.take(part)]

    def take(self, got: _Got) -> list[Event]:
        """Return what an event of the stream says; kinds that are not known may come and say nothing, such as ping."""
        if got.type == "content_block_delta" and got.delta is not None:
            return self._delta(got.index, got.delta)
        if got.type == "content_block_start" and got.content_block is not None:
            return self._start(got.index, got.content_block)
        if got.type == "content_block_stop" and got.index in self._empty:
            self._empty.remove(got.index)
            return [ToolCallDelta(0, self._calls[got.index], "{}")]
        if got.type == "message_start" and got.message is not None:
            self._counts = self._counts.then(got.message.usage)
            return [Begin(got.message.id, got.message.model)]
        if got.type == "message_delta":
            self._counts = self._counts.then(got.usage)
            self._last = got.delta or self._last
        if got.type == "error":
            raise _failure(got.error)
        return self._stop() if got.type == "message_stop" else []

    def _start(self, index: int, block: _GotBlock) -> list[Event]:
        if block.type == "text":
            return [Delta(0, block.text)] if block.text else []
        if block.type == "thinking":
            item, signature = without_item(block.signature or "")
            said = block.thinking or signature or item
            return [ThinkingDelta(0, block.thinking, signature=signature, id=item)] if said else []
        if block.type == "redacted_thinking":
            item, data = without_item(block.data)
            return [ThinkingDelta(0, redacted=data or "", id=item)]
        if block.type != "tool_use":
            raise ProviderError(f"the answer holds a block of type {block.type}, which has no form in other dialects")
        call = self._calls[index] = len(self._calls)
        begin = ToolCallBegin(0, call, block.id, block.name)
        try:
            arguments = bytes(block.input).decode()
        except UnicodeDecodeError:
            raise ProviderError("the provider's answer is not valid UTF-8") from None
        if arguments.strip("{} \r\n\t") == "":
            self._empty.add(index)
            return [begin]
        return [begin, ToolCallDelta(0, call, arguments)]

    def _delta(self, index: int, delta: _GotDelta) -> list[Event]:
        if delta.type == "text_delta":
            return [Delta(0, delta.text)] if delta.text else []
        if delta.type == "thinking_delta":
            return [ThinkingDelta(0, delta.thinking)] if delta.thinking else []
        if delta.type == "signature_delta":
            item, signature = without_item(delta.signature)
            return [ThinkingDelta(0, signature=signature, id=item)] if signature or item else []
        if delta.type == "input_json_delta":
            return self._arguments(index, delta.partial_json)
        if delta.type == "citations_delta":
            return []  # the cited text itself comes as text; nobody who writes another dialect can ask for the sources
        raise ProviderError(f"the answer holds a delta of type {delta.type}, which has no form in other dialects")

    def _arguments(self, index: int, text: str) -> list[Event]:
        if index not in self._calls:
            raise ProviderError("the answer holds arguments of no tool call")
        if not text:
            return []
        self._empty.discard(index)
        return [ToolCallDelta(0, self._calls[index], text)]

    def _stop(self) -> list[Event]:
        reason = _REASON.get(self._last.stop_reason or "")
        if reason is None:
            raise ProviderError(f"the answer ended for a reason that is not known: {self._last.stop_reason}")
        self.ended = True
        empty: list[Event] = [ToolCallDelta(0, self._calls[index], "{}") for index in sorted(self._empty)]
        why = self._last.stop_details.explanation if self._last.stop_details else None
        refusal: list[Event] = [RefusalDelta(0, why)] if why else []
        return [*empty, *refusal, End(0, reason, self._last.stop_sequence), self._counts.usage()]


def _failure(said: Any) -> ProviderError:
    kind = said.get("type") if isinstance(said, dict) else None
    status = STATUS.get(kind, 502) if isinstance(kind, str) else 502
    return ProviderError(f"the provider failed: {_said(said)}", status, retryable=status == 429 or status >= 500)


def _said(error: Any) -> str:
    """Return the message of an error, or all of it where it has none."""
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else str(error)


# Understanding answers that passed through


_whole_answers = msgspec.json.Decoder(dict[str, Any])


def understand(answer: bytes) -> Reading:
    """Read a finished answer, whole or a stream, also one that was cut off; what is not there stays unknown."""
    if not answer.lstrip().startswith(b"{"):
        return _understand_stream(answer)
    try:
        found = _whole_answers.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Reading(complete=False)
    return Reading(error=_said(found.get("error"))) if found.get("type") == "error" else _reading(found)


def _understand_stream(answer: bytes) -> Reading:
    events = []
    for line in answer.split(b"\n"):
        if line.startswith(b"data:"):
            try:
                events.append(_seen.decode(line[5:]))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue  # it was cut here
    message = _add_up(events)
    for block in message.get("content", []):
        if isinstance(block.get("input"), str):
            block["input"] = _arguments(block["input"])
    failure = next((_said(event.error) for event in events if event.type == "error"), None)
    complete = any(event.type == "message_stop" for event in events)
    return msgspec.structs.replace(_reading(message), error=failure, complete=complete)


def _add_up(events: Iterable[_Event]) -> dict[str, Any]:
    """Return the whole answer that the events of a stream make, as far as they go; ``input`` of tools stays text."""
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    said: dict[tuple[int, str], list[str]] = {}
    for event in events:
        index = event.index or 0
        if event.type == "message_start":
            message = dict(event.message or {})
        elif event.type == "content_block_start":
            blocks[index] = dict(event.content_block or {})
        elif event.type == "content_block_delta" and index in blocks:
            for name, value in (event.delta or {}).items():
                if name == "citation":
                    blocks[index]["citations"] = [*(blocks[index].get("citations") or []), value]
                elif name != "type" and isinstance(value, str):
                    said.setdefault((index, "input" if name == "partial_json" else name), []).append(value)
        elif event.type == "message_delta":
            message |= event.delta or {}
            counted = message.get("usage")
            message["usage"] = (counted if isinstance(counted, dict) else {}) | {
                name: value for name, value in (event.usage or {}).items() if value is not None
            }
    for (index, name), parts in said.items():
        before = blocks[index].get(name)
        text = (before if isinstance(before, str) else "") + "".join(parts)
        blocks[index][name] = text
    return message | {"content": list(blocks.values())} if message or blocks else {}


def _arguments(text: str) -> Any:
    """Return a tool's arguments, or the text of what is not a JSON object, such as arguments that were cut off."""
    try:
        return _whole_answers.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return text


def _reading(message: dict[str, Any]) -> Reading:
    found = message.get("content")
    blocks = [block for block in found if isinstance(block, dict)] if isinstance(found, list) else []
    texts = [block["text"] for block in blocks if block.get("type") == "text" and isinstance(block.get("text"), str)]
    reason, model = message.get("stop_reason"), message.get("model")
    try:
        counts = msgspec.convert(message.get("usage") or {}, _Counts)
    except msgspec.ValidationError:
        counts = _Counts()
    return Reading(
        texts=["".join(texts)] if isinstance(found, list) else [],
        messages=[{"role": "assistant", "content": blocks}] if len(texts) < len(blocks) else [],
        finish_reason=reason if isinstance(reason, str) else None,
        usage=counts.usage(),
        model=model if isinstance(model, str) else None,
    )
