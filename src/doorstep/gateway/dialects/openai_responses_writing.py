"""Answers of OpenAI's Responses as they are written: the whole response, and its stream of numbered events."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from doorstep import ids
from doorstep.gateway.chat import (
    Begin,
    ChatRequest,
    Delta,
    End,
    Event,
    Reason,
    Reasoning,
    RefusalDelta,
    SampledText,
    ThinkingDelta,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from doorstep.gateway.dialects import openai_responses_seals as seals
from doorstep.gateway.dialects.base import Head
from doorstep.gateway.dialects.openai_responses_sending import (
    split_instructions,
    write_choice,
    write_effort,
    write_text,
    write_tool,
)


def write(
    events: AsyncIterator[Event], *, head: Head, answer_id: str, model: str, request: ChatRequest
) -> AsyncIterator[bytes]:
    """Yield an answer's bytes: all at once, or as they come when the request is for a stream."""
    writing = _Writing(answer_id)
    about = _about(request, answer_id, model)
    return _stream(events, writing, about) if head.stream else _whole(events, writing, about)


_Frame = tuple[str, dict[str, Any]]  # an event of the stream: its type and its other fields


class _Said:
    """A message item while it grows."""

    def __init__(self, index: int, item_id: str) -> None:
        self._index, self._id = index, item_id
        self._parts: list[dict[str, Any]] = []
        self._kind = ""
        self._words: list[str] = []
        self._tokens: list[dict[str, Any]] = []

    def item(self, status: str) -> dict[str, Any]:
        parts = list(self._parts)
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": parts}

    def text(self, text: str, tokens: list[dict[str, Any]]) -> list[_Frame]:
        frames = self._turn_to("output_text")
        self._words.append(text)
        self._tokens += tokens
        return [*frames, ("response.output_text.delta", self._place() | {"delta": text, "logprobs": tokens})]

    def refuse(self, text: str) -> list[_Frame]:
        frames = self._turn_to("refusal")
        self._words.append(text)
        return [*frames, ("response.refusal.delta", self._place() | {"delta": text})]

    def close(self) -> list[_Frame]:
        if not self._kind:
            return []
        place, part = self._place(), self._part()
        text = "".join(self._words)
        if self._kind == "refusal":
            done: _Frame = ("response.refusal.done", place | {"refusal": text})
        else:
            done = ("response.output_text.done", place | {"text": text, "logprobs": self._tokens})
        self._parts.append(part)
        self._kind, self._words, self._tokens = "", [], []
        return [done, ("response.content_part.done", place | {"part": part})]

    def _turn_to(self, kind: str) -> list[_Frame]:
        if self._kind == kind:
            return []
        frames = self.close()
        self._kind = kind
        return [*frames, ("response.content_part.added", self._place() | {"part": self._part()})]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index, "content_index": len(self._parts)}

    def _part(self) -> dict[str, Any]:
        text = "".join(self._words)
        if self._kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "annotations": [], "logprobs": list(self._tokens), "text": text}


class _Thought:
    """A reasoning item while it grows. Its text is one part of the summary."""

    def __init__(self, index: int, item_id: str, origin: str | None) -> None:
        self._index, self._id = index, item_id
        self.origin = origin
        self._words: list[str] = []
        self.sealed: str | None = None

    def item(self, status: str) -> dict[str, Any]:
        summary = [self._part()] if self._words and status != "in_progress" else []
        sealed = {} if self.sealed is None else {"encrypted_content": self.sealed}
        return {"id": self._id, "type": "reasoning", "summary": summary, **sealed}

    def think(self, text: str) -> list[_Frame]:
        place = self._place()
        first: list[_Frame] = []
        if not self._words:
            first = [("response.reasoning_summary_part.added", place | {"part": self._part()})]
        self._words.append(text)
        return [*first, ("response.reasoning_summary_text.delta", place | {"delta": text})]

    def close(self) -> list[_Frame]:
        if not self._words:
            return []
        place, part = self._place(), self._part()
        return [
            ("response.reasoning_summary_text.done", place | {"text": part["text"]}),
            ("response.reasoning_summary_part.done", place | {"part": part}),
        ]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index, "summary_index": 0}

    def _part(self) -> dict[str, Any]:
        return {"type": "summary_text", "text": "".join(self._words)}


class _Called:
    """A function call while its arguments grow."""

    def __init__(self, index: int, item_id: str, begin: ToolCallBegin) -> None:
        self._index, self._id, self._begin = index, item_id, begin
        self._words: list[str] = []

    def item(self, status: str) -> dict[str, Any]:
        call = {"id": self._id, "type": "function_call", "status": status}
        return call | {"arguments": "".join(self._words), "call_id": self._begin.id, "name": self._begin.name}

    def more(self, arguments: str) -> list[_Frame]:
        self._words.append(arguments)
        return [("response.function_call_arguments.delta", self._place() | {"delta": arguments})]

    def close(self) -> list[_Frame]:
        return [("response.function_call_arguments.done", self._place() | {"arguments": "".join(self._words)})]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index}


class _Writing:
    """An answer while its events come. Every step returns the frames that tell it in a stream.

    Function calls stay open until the end, since parallel ones may grow in turns; of the other items one is open.
    """

    def __init__(self, answer_id: str) -> None:
        self._answer_id = answer_id
        self.output: list[dict[str, Any]] = []  # the items, each as it was told last
        self._open: _Said | _Thought | None = None
        self._calls: dict[int, tuple[int, _Called]] = {}
        self._refused = False
        self._reason: Reason = "stop"
        self._usage = Usage()

    def take(self, event: Event) -> list[_Frame]:
        match event:
            case Begin():
                return []
            case Delta():
                return self._text(event)
            case RefusalDelta():
                return self._refuse(event)
            case ThinkingDelta():
                return self._think(event)
            case ToolCallBegin():
                return self._call(event)
            case ToolCallDelta():
                return self._calls[event.call][1].more(event.arguments)
            case End():
                return self._end(event)
            case Usage():
                self._usage = event
                return []

    def outcome(self) -> dict[str, Any]:
        """Return what the response says at its end."""
        why = self._why()
        return {
            "status": "completed" if why is None else "incomplete",
            "completed_at": ids.now_us() // 1_000_000 if why is None else None,
            "incomplete_details": None if why is None else {"reason": why},
            "output": self.output,
            "usage": _write_usage(self._usage),
        }

    def _why(self) -> str | None:
        """Return why the answer is incomplete. A refusal without words must not look like an answer."""
        if self._reason == "refusal" and not self._refused:
            return "content_filter"
        return {"length": "max_output_tokens", "content_filter": "content_filter"}.get(self._reason)

    def _text(self, event: Delta) -> list[_Frame]:
        frames, message = self._message()
        return frames + message.text(event.text, [_write_token(token) for token in event.tokens])

    def _refuse(self, event: RefusalDelta) -> list[_Frame]:
        self._refused = True
        frames, message = self._message()
        return frames + message.refuse(event.text)

    def _message(self) -> tuple[list[_Frame], _Said]:
        if isinstance(self._open, _Said):
            return [], self._open
        frames = self._close()
        message = _Said(len(self.output), self._new_id("msg"))
        self._open = message
        return frames + self._add(message.item("in_progress")), message

    def _think(self, event: ThinkingDelta) -> list[_Frame]:
        frames: list[_Frame] = []
        thought = self._open if isinstance(self._open, _Thought) else None
        another = thought is not None and event.id is not None and event.id != thought.origin
        if thought is None or another or event.redacted is not None:
            frames += self._close()
            thought = _Thought(len(self.output), event.id or self._new_id("rs"), event.id)
            self._open = thought
            frames += self._add(thought.item("in_progress"))
        if event.text:
            frames += thought.think(event.text)
        thought.sealed = seals.for_client(event.signature, event.redacted)
        return frames if thought.sealed is None else frames + self._close()

    def _call(self, event: ToolCallBegin) -> list[_Frame]:
        frames = self._close()
        index = len(self.output)
        call = _Called(index, self._new_id("fc"), event)
        self._calls[event.call] = index, call
        return frames + self._add(call.item("in_progress"))

    def _end(self, event: End) -> list[_Frame]:
        self._reason = event.reason
        status = "completed" if self._why() is None else "incomplete"
        frames = self._close(status)
        for index, call in self._calls.values():
            frames += [*call.close(), self._done(index, call.item(status))]
        return frames

    def _add(self, item: dict[str, Any]) -> list[_Frame]:
        self.output.append(item)
        return [("response.output_item.added", {"output_index": len(self.output) - 1, "item": item})]

    def _close(self, status: str = "completed") -> list[_Frame]:
        """Close the message or the reasoning that is open, which is the last item."""
        if self._open is None:
            return []
        closing, self._open = self._open, None
        frames = closing.close()
        return [*frames, self._done(len(self.output) - 1, closing.item(status))]

    def _done(self, index: int, item: dict[str, Any]) -> _Frame:
        self.output[index] = item
        return "response.output_item.done", {"output_index": index, "item": item}

    def _new_id(self, kind: str) -> str:
        return f"{kind}_{self._answer_id}_{len(self.output)}"


async def _whole(events: AsyncIterator[Event], writing: _Writing, about: dict[str, Any]) -> AsyncIterator[bytes]:
    async for event in events:
        writing.take(event)
    yield msgspec.json.encode(about | writing.outcome())


async def _stream(events: AsyncIterator[Event], writing: _Writing, about: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield frames as they come. The opening ones wait for the first that tells something of the answer."""
    number = itertools.count()
    waiting: list[_Frame] = [("response.created", {"response": about}), ("response.in_progress", {"response": about})]
    async for event in events:
        if frames := writing.take(event):
            yield b"".join(frame(kind, next(number), fields) for kind, fields in waiting + frames)
            waiting = []
    outcome = writing.outcome()
    last = (f"response.{outcome['status']}", {"response": about | outcome})
    yield b"".join(frame(kind, next(number), fields) for kind, fields in [*waiting, last])


def frame(kind: str, number: int, fields: dict[str, Any]) -> bytes:
    """Return an event of the stream as bytes."""
    data = msgspec.json.encode({"type": kind, "sequence_number": number, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _about(request: ChatRequest, answer_id: str, model: str) -> dict[str, Any]:
    """Return the response as it is before the answer: what was asked for, said again."""
    thinking = write_effort(request.reasoning or Reasoning())
    return {
        "id": f"resp_{answer_id}",
        "object": "response",
        "created_at": ids.now_us() // 1_000_000,
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": split_instructions(request.messages)[0],
        "max_output_tokens": request.max_tokens,
        "max_tool_calls": None,
        "metadata": {},
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None} | thinking,
        "safety_identifier": None,
        "service_tier": request.service_tier,
        "store": False,
        "temperature": request.temperature,
        "text": {"format": {"type": "text"}} | (write_text(request) or {}),
        "tool_choice": write_choice(request.tool_choice) if request.tool_choice else "auto",
        "tools": [write_tool(tool) for tool in request.tools],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _write_token(token: SampledText) -> dict[str, Any]:
    top = [{"token": other.text, "logprob": other.logprob, "bytes": list(other.bytes)} for other in token.top]
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes), "top_logprobs": top}


def _write_usage(usage: Usage) -> dict[str, Any] | None:
    """Return the counts; none at all where the whole ones are not known, since the wire has no unknown count."""
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    read, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
