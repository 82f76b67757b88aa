"""Answers of OpenAI's chat completions, whole and streamed, read: as canonical events, and what finished ones say.

The format is what OpenAI documents and what its followers make of it; where they differ, a comment names them.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, cast

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
from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import Reading

# How followers of OpenAI call what ends an answer; what is not here is not understood.
_REASONS: dict[str, Reason] = {
    "stop": "stop", "eos": "stop", "end_turn": "stop", "stop_sequence": "stop",
    "length": "length", "max_tokens": "length", "model_length": "length",
    "tool_calls": "tool_calls", "function_call": "tool_calls",
    "content_filter": "content_filter", "sensitive": "content_filter",
}  # fmt: skip


# As events


class _InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None


class _OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class _Counts(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's name for cached tokens

    def usage(self) -> Usage:
        of_input = self.prompt_tokens_details or _InputDetails()
        of_output = self.completion_tokens_details or _OutputDetails()
        return Usage(
            input_tokens=self.prompt_tokens,
            output_tokens=self.completion_tokens,
            cached_tokens=self.prompt_cache_hit_tokens if of_input.cached_tokens is None else of_input.cached_tokens,
            cache_write_tokens=of_input.cache_write_tokens,
            reasoning_tokens=of_output.reasoning_tokens,
            input_audio_tokens=of_input.audio_tokens,
            output_audio_tokens=of_output.audio_tokens,
        )


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, frozen=True):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Detail(msgspec.Struct, frozen=True):
    text: str | None = None
    summary: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None


class _Part(msgspec.Struct, frozen=True):
    """Part of a content that is a list, as Mistral's reasoning models write it."""

    type: str
    text: str = ""
    thinking: list["_Part"] = []


class _Said(msgspec.Struct, frozen=True):
    """A message, or what a chunk adds to it."""

    content: str | list[_Part] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[_Detail] | None = None
    tool_calls: list[_Call] | None = None
    audio: Any = None
    images: Any = None


class _Likely(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list["_Likely"] = []

    def sampled(self) -> SampledText:
        data = self.token.encode() if self.bytes is None else bytes(self.bytes)
        return SampledText(self.token, data, self.logprob, [other.sampled() for other in self.top_logprobs])


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[_Likely] | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    message: _Said | None = None
    delta: _Said | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Answer(msgspec.Struct, frozen=True):
    """A whole answer, or a chunk of one."""

    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Counts | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None  # with ``object`` ``error``, as vLLM once wrote errors
    code: Any = None


_answers = msgspec.json.Decoder(_Answer)


async def read_answer(pieces: AsyncIterator[bytes], *, stream: bool) -> AsyncIterator[Event]:
    """Yield a provider's answer as events; ``ProviderError`` for one that is not complete or not understood."""
    reader = _Reader()
    if not stream:
        body = b"".join([piece async for piece in pieces])
        for event in reader.add(body):
            yield event
        yield reader.finish()
        return
    async with aclosing(cast("Any", wire.event_data(pieces))) as chunks:
        async for data in chunks:
            if data.strip() == b"[DONE]":
                break
            for event in reader.add(data):
                yield event
    yield reader.finish()


class _Reader:
    """Reads one answer, chunk by chunk. A whole answer is one chunk."""

    def __init__(self) -> None:
        self._begun: Begin | None = None
        self._usage = Usage()
        self._choices: dict[int, _ChoiceReader] = {}

    def add(self, data: bytes) -> Iterator[Event]:
        """Read a chunk."""
        try:
            answer = _answers.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            start = data[:80].decode("utf-8", "replace")
            raise ProviderError(f"the provider's answer cannot be read: {error}; it begins {start!r}") from None
        if answer.error is not None or answer.object == "error":
            raise _failure(answer)
        if self._begun is None and (answer.id or answer.model or answer.choices):
            self._begun = Begin(answer.id or None, answer.model or None)
            yield self._begun
        for choice in answer.choices or ():
            if choice.index not in self._choices:
                self._choices[choice.index] = _ChoiceReader(choice.index, (self._begun and self._begun.id) or "answer")
            yield from self._choices[choice.index].add(choice)
        if answer.usage is not None:
            self._usage = answer.usage.usage()

    def finish(self) -> Usage:
        """Check that all is there; return the last event."""
        if not self._choices:
            raise ProviderError("the provider's answer was empty")
        if not all(choice.ended for choice in self._choices.values()):
            raise ProviderError("the provider's answer broke off: it has no finish_reason")
        return self._usage


class _ChoiceReader:
    """Reads one of the answers of a call."""

    def __init__(self, index: int, answer_id: str) -> None:
        self.ended = False
        self._index = index
        self._answer_id = answer_id
        self._refused = False
        self._calls: dict[int, tuple[int, str | None]] = {}  # the provider's index to our number and its id
        self._count = 0

    def add(self, choice: _Choice) -> Iterator[Event]:
        """Read what a chunk adds; after the end there is nothing more."""
        if self.ended:
            return
        if (said := choice.delta or choice.message) is not None:
            yield from self._thoughts(said)
            yield from self._words(said, choice.logprobs)
            for place, call in enumerate(said.tool_calls or ()):
                yield from self._call(call, place)
        if choice.finish_reason:
            yield self._end(choice.finish_reason, choice.stop_reason)

    def _thoughts(self, said: _Said) -> Iterator[Event]:
        if said.reasoning_details:
            for detail in said.reasoning_details:
                text = detail.text or detail.summary or ""
                yield ThinkingDelta(self._index, text, detail.signature, detail.data, detail.id)
        elif thought := said.reasoning_content or said.reasoning:
            yield ThinkingDelta(self._index, thought)

    def _words(self, said: _Said, logprobs: _Logprobs | None) -> Iterator[Event]:
        if said.audio or said.images:
            raise ProviderError("the provider answers with sound or pictures, which only its own dialect can carry")
        if isinstance(said.content, list):
            for part in said.content:
                thought = "".join(inner.text for inner in part.thinking)
                yield ThinkingDelta(self._index, thought) if part.type == "thinking" else Delta(self._index, part.text)
        else:
            tokens = [token.sampled() for token in (logprobs and logprobs.content) or ()]
            if said.content or tokens:
                yield Delta(self._index, said.content or "", tokens)
        if said.refusal:
            self._refused = True
            yield RefusalDelta(self._index, said.refusal)

    def _call(self, call: _Call, place: int) -> Iterator[Event]:
        """Read a tool call or more of one.

        Some providers give all calls one index: then a name that comes again with another id, or with none, is another.
        """
        at = place if call.index is None else call.index
        function = call.function or _Function()
        number, known = self._calls.get(at, (-1, None))
        if number < 0 or (function.name and (call.id or None) != known):
            if not function.name:
                raise ProviderError("the provider's answer has a tool call without a name")
            number, self._count = self._count, self._count + 1
            self._calls[at] = number, call.id
            yield ToolCallBegin(self._index, number, call.id or f"call_{self._answer_id}_{number}", function.name)
        if function.arguments:
            yield ToolCallDelta(self._index, number, function.arguments)

    def _end(self, finish: str, stop: str | int | None) -> End:
        self.ended = True
        reason = _REASONS.get(finish)
        if reason is None:
            raise ProviderError(f"the provider's answer ended with finish_reason {finish[:80]!r}")
        if self._refused and reason == "stop":
            reason = "refusal"
        elif self._count and reason == "stop":  # some say so of tool calls too
            reason = "tool_calls"
        return End(self._index, reason, stop if isinstance(stop, str) else None)


def _failure(answer: _Answer) -> ProviderError:
    """Return what an error object or an error event says."""
    told = answer.error if isinstance(answer.error, dict) else {"message": answer.error or answer.message}
    code = told.get("code", told.get("status", answer.code))
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    if not (isinstance(code, int) and 400 <= code < 600):
        kinds = {"rate_limit_error": 429, "rate_limit_exceeded": 429, "invalid_request_error": 400}
        code = kinds.get(str(told.get("type")), 502)
    message = told.get("message") or "no reason given"
    return ProviderError(f"the provider failed: {message}", status=code, retryable=code in (408, 429) or code >= 500)


# Understanding answers that have passed


class _RawChoice(msgspec.Struct, frozen=True):
    index: int = 0
    message: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None


class _RawAnswer(msgspec.Struct, frozen=True):
    model: str | None = None
    choices: list[_RawChoice] | None = None
    usage: _Counts | None = None
    error: Any = None


_raw_answers = msgspec.json.Decoder(_RawAnswer)


def understand(answer: bytes) -> Reading:
    """Read a finished answer, whole or a stream, also one that was cut off; what is not there stays unknown."""
    if answer.lstrip()[:1] == b"{":
        part = _decode(answer)
        return Reading(complete=False) if part is None else _reading([part], complete=True)
    chunks = [line[5:].strip() for line in answer.split(b"\n") if line.startswith(b"data:")]
    parts = [part for chunk in chunks if chunk[:1] == b"{" and (part := _decode(chunk)) is not None]
    try:
        return _reading(parts, complete=b"[DONE]" in chunks[-1:])
    except RecursionError:
        return Reading(complete=False)


def _decode(data: bytes) -> _RawAnswer | None:
    try:
        return _raw_answers.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _reading(parts: list[_RawAnswer], *, complete: bool) -> Reading:
    messages: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    usage, model, failed = Usage(), None, None
    for part in parts:
        model = part.model or model
        usage = usage if part.usage is None else part.usage.usage()
        if part.error is not None and failed is None:
            failed = part.error.get("message") if isinstance(part.error, dict) else part.error
            failed = str(failed or "no reason given")
        for choice in part.choices or ():
            _merge(messages.setdefault(choice.index, {}), choice.message or choice.delta or {})
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    whole = [_plain(messages[index]) for index in sorted(messages)]
    finished = bool(messages) and reasons.keys() == messages.keys()
    return Reading(
        texts=[_text(message.get("content")) for message in whole],
        messages=whole if any(_is_rich(message) for message in whole) else [],
        finish_reason=reasons[max(reasons)] if reasons else None,
        usage=usage,
        model=model,
        error=failed,
        complete=failed is None and (complete or finished),
    )


def _merge(message: dict[str, Any], more: dict[str, Any]) -> None:
    """Add what a chunk says to a message: texts grow, lists are joined by ``index``."""
    for name, value in more.items():
        held = message.get(name)
        if isinstance(held, str) and isinstance(value, str) and name not in ("role", "type", "id"):
            message[name] = held + value
        elif isinstance(held, dict) and isinstance(value, dict):
            _merge(held, value)
        elif isinstance(held, list) and isinstance(value, list):
            _merge_lists(held, value)
        elif isinstance(value, list):
            message[name] = []
            _merge_lists(message[name], value)
        elif value is not None:
            message[name] = value


def _merge_lists(held: list[Any], more: list[Any]) -> None:
    for item in more:
        index = item.get("index") if isinstance(item, dict) else None
        same = next((old for old in held if isinstance(old, dict) and old.get("index") == index), None)
        if index is None or same is None:
            held.append(item)
        else:
            _merge(same, {name: value for name, value in item.items() if name != "index"})


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without what is empty, and without the numbers that only a stream needs."""
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [
            {name: value for name, value in call.items() if name != "index"} if isinstance(call, dict) else call
            for call in calls
        ]
    return {name: value for name, value in message.items() if name == "content" or value not in (None, [], {}, "")}


def _is_rich(message: dict[str, Any]) -> bool:
    return not (message.keys() <= {"role", "content"} and isinstance(message.get("content", ""), str | None))


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
