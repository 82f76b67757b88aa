"""Requests and answers of OpenAI's chat completions, written from the canonical form.

Thinking is ``reasoning_content``, as DeepSeek, GLM and vLLM write it. Where it is signed, and in every stream, it is
also ``reasoning_details``, as OpenRouter writes it: a client that sends them back keeps the signatures. Where a field
is not OpenAI's own, such as ``top_k``, the provider judges whether it knows it. Left out of requests are hints that
change nothing in what is sampled and that many services refuse as unknown: cache marks and ``reasoning.summary``.
"""

import base64
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from doorstep import ids
from doorstep.errors import BadInput
from doorstep.gateway.chat import (
    AnswerFormat,
    Audio,
    Begin,
    Block,
    ChatRequest,
    Delta,
    End,
    Event,
    File,
    Image,
    Message,
    Reason,
    Reasoning,
    Refusal,
    RefusalDelta,
    SampledText,
    Text,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallBegin,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import Head

# Anthropic's budgets of thinking as OpenAI's words: up to so many tokens is this effort.
_EFFORTS = ((4096, "low"), (16384, "medium"))

# OpenAI's reasoning models take ``max_completion_tokens`` only and know the role ``developer``; other models' services
# know ``max_tokens`` and ``system`` at least.
_NEWER = re.compile(r"(.*/)?(o\d|gpt-[5-9])")

# OpenAI has no words for these; a refusal that says why ends as any text does.
_FINISH: dict[Reason, str] = {"refusal": "content_filter", "pause": "stop"}

DONE = b"data: [DONE]\n\n"

ChoiceEvent = Delta | ThinkingDelta | RefusalDelta | ToolCallBegin | ToolCallDelta | End  # of one of a call's answers


# Requests


def write_request(request: ChatRequest, *, head: Head, model: str) -> bytes:
    """Write a request; what this format cannot say is ``BadInput``.

    Chat has no mark for a tool that failed: its result begins with ``Error:``. It has no budget of thinking in tokens:
    that is written as an effort.
    """
    limit, developer = ("max_completion_tokens", "developer") if _NEWER.match(model) else ("max_tokens", "system")
    fields: dict[str, Any] = {
        "model": model,
        "messages": [wired for message in request.messages for wired in _write_message(message, developer)],
        limit: request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "stop": request.stop or None,
        "seed": request.seed,
        "n": request.n if request.n > 1 else None,
        "logprobs": request.logprobs or None,
        "top_logprobs": request.top_logprobs,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logit_bias": _write_bias(request.logit_bias),
        "tools": [_write_tool(tool) for tool in request.tools] or None,
        "tool_choice": _write_choice(request),
        "parallel_tool_calls": request.parallel_tool_calls if request.tools else None,
        "response_format": _write_format(request.answer_format),
        "reasoning_effort": _write_effort(request.reasoning),
        "verbosity": request.verbosity,
        "user": request.user,
        "service_tier": request.service_tier,
    }
    if head.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return wire.encode(_said(fields))


def _write_bias(bias: Mapping[str, float] | None) -> dict[str, float] | None:
    """Return biases, whole ones as whole numbers: some services take no others."""
    if bias is None:
        return None
    return {token: int(value) if value.is_integer() else value for token, value in bias.items()}


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _write_message(message: Message, developer: str) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        for result in message.blocks:
            yield _write_result(cast("ToolResult", result))
    elif message.role == "assistant":
        yield _said({"role": "assistant", "name": message.name}) | _write_said(message.blocks)
    else:
        content = _write_content(message.blocks, message.role)
        role = developer if message.role == "developer" else message.role
        yield _said({"role": role, "content": content, "name": message.name})


def _write_result(result: ToolResult) -> dict[str, Any]:
    content: Sequence[Block] = result.content
    if result.is_error:
        first = content[0].text if content and isinstance(content[0], Text) else None
        content = [Text(text="Error:" if first is None else f"Error: {first}"), *content[first is not None :]]
    return {"role": "tool", "tool_call_id": result.call_id, "content": _write_content(content, "tool")}


def _write_said(blocks: Sequence[Block]) -> dict[str, Any]:
    thoughts = [block for block in blocks if isinstance(block, Thinking)]
    calls = [block for block in blocks if isinstance(block, ToolCall)]
    refusals = [block.text for block in blocks if isinstance(block, Refusal)]
    words = [block for block in blocks if not isinstance(block, Thinking | ToolCall | Refusal)]
    fields = {
        "content": _write_content(words, "assistant") if words else None,
        "refusal": "".join(refusals) or None,
        "tool_calls": [_write_call(call) for call in calls] or None,
        "reasoning_content": "".join(thought.text for thought in thoughts) or None,
    }
    if any(thought.signature is not None or thought.redacted is not None or thought.id for thought in thoughts):
        fields["reasoning_details"] = [_write_detail(thought, place) for place, thought in enumerate(thoughts)]
    return {"content": None, **_said(fields)}


def _write_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _write_detail(thought: Thinking, place: int) -> dict[str, Any]:
    """Return a piece of reasoning as OpenRouter writes it: the one form of chat that keeps a signature."""
    if thought.redacted is not None:
        return _said({"type": "reasoning.encrypted", "data": thought.redacted, "id": thought.id, "index": place})
    return _said(
        {
            "type": "reasoning.text",
            "text": thought.text,
            "signature": thought.signature,
            "id": thought.id,
            "index": place,
        }
    )


def _write_content(blocks: Sequence[Block], role: str) -> str | list[dict[str, Any]]:
    if len(blocks) == 1 and isinstance(blocks[0], Text):
        return blocks[0].text
    return [_write_part(block, role) for block in blocks]


def _write_part(block: Block, role: str) -> dict[str, Any]:
    match block:
        case Text():
            return {"type": "text", "text": block.text}
        case Image() if role in ("user", "tool"):
            if block.file_id is not None:
                raise BadInput("messages", "OpenAI chat takes no picture by the id of a file; send its data or address")
            url = block.url if block.url is not None else f"data:{block.media_type or 'image/png'};base64,{block.data}"
            return {"type": "image_url", "image_url": _said({"url": url, "detail": block.detail})}
        case Audio() if role == "user":
            return {"type": "input_audio", "input_audio": {"data": block.data, "format": block.format}}
        case File() if role in ("user", "tool"):
            return {"type": "file", "file": _write_file(block)}
        case _:
            kind = type(block).__name__.lower()
            raise BadInput("messages", f"OpenAI chat takes no {kind} block in a message of role {role}")


def _write_file(file: File) -> dict[str, Any]:
    if file.file_id is not None:
        return _said({"file_id": file.file_id, "filename": file.name})
    if file.text is not None:
        data: str | None = f"data:text/plain;base64,{base64.b64encode(file.text.encode()).decode()}"
    elif file.data is not None and file.media_type is not None:
        data = f"data:{file.media_type};base64,{file.data}"
    else:
        data = file.data or file.url
    return _said({"file_data": data, "filename": file.name})


def _write_tool(tool: Tool) -> dict[str, Any]:
    about = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    return {"type": "function", "function": _said(about)}


def _write_choice(request: ChatRequest) -> str | dict[str, Any] | None:
    """Return the choice; OpenAI refuses one without tools, even where it asks for nothing."""
    choice = request.tool_choice
    if choice is None or (not request.tools and choice.mode in ("auto", "none")):
        return None
    return {"type": "function", "function": {"name": choice.name}} if choice.mode == "one" else choice.mode


def _write_format(wanted: AnswerFormat | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    if wanted.schema is None:
        return {"type": "json_object"}
    schema = {
        "name": wanted.name or "answer",
        "description": wanted.description,
        "schema": wanted.schema,
        "strict": wanted.strict,
    }
    return {"type": "json_schema", "json_schema": _said(schema)}


def _write_effort(reasoning: Reasoning | None) -> str | None:
    if reasoning is None:
        return None
    if reasoning.off:
        return "none"
    if reasoning.effort is not None or reasoning.budget is None:
        return reasoning.effort
    return next((effort for most, effort in _EFFORTS if reasoning.budget <= most), "high")


# Answers


def write(
    events: AsyncIterator[Event], *, head: Head, answer_id: str, model: str, request: ChatRequest
) -> AsyncIterator[bytes]:
    """Yield an answer's bytes: all at once, or as they come when the request is for a stream."""
    about = {"id": f"chatcmpl-{answer_id}", "created": ids.now_us() // 1_000_000, "model": model}
    return _stream(events, about, head.usage, request) if head.stream else _whole(events, about, request)


class _Draft:
    """One answer, as it grows."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.tokens: list[SampledText] = []
        self.refusal: list[str] = []
        self.calls: dict[int, tuple[ToolCallBegin, list[str]]] = {}
        self.thoughts = _Thoughts()
        self.end: End | None = None

    def add(self, event: ChoiceEvent) -> None:
        match event:
            case Delta():
                self.text.append(event.text)
                self.tokens += event.tokens
            case ThinkingDelta():
                self.thoughts.add(event)
            case RefusalDelta():
                self.refusal.append(event.text)
            case ToolCallBegin():
                self.calls[event.call] = event, []
            case ToolCallDelta():
                self.calls[event.call][1].append(event.arguments)
            case End():
                self.end = event

    def message(self) -> dict[str, Any]:
        text = "".join(self.text)
        other = self.refusal or self.calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not other else None,
            "refusal": "".join(self.refusal) if self.refusal else None,
        }
        if self.thoughts.blocks:
            message["reasoning_content"] = "".join(block.text for block in self.thoughts.blocks)
        if any(block.signature or block.redacted or block.id for block in self.thoughts.blocks):
            message["reasoning_details"] = [_write_detail(*pair[::-1]) for pair in enumerate(self.thoughts.blocks)]
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": begin.id,
                    "type": "function",
                    "function": {"name": begin.name, "arguments": "".join(arguments)},
                }
                for begin, arguments in self.calls.values()
            ]
        return message


class _Thoughts:
    """The blocks of one answer's reasoning: a signature ends one, a redacted one stands alone."""

    def __init__(self) -> None:
        self.blocks: list[Thinking] = []
        self._open = False

    def add(self, event: ThinkingDelta) -> int:
        """Take more reasoning; return the place of its block."""
        new = Thinking(text=event.text, signature=event.signature, redacted=event.redacted, id=event.id)
        if self._open and event.redacted is None:
            last = self.blocks[-1]
            self.blocks[-1] = Thinking(
                text=last.text + new.text, signature=new.signature, redacted=None, id=last.id or new.id
            )
        else:
            self.blocks.append(new)
        self._open = event.redacted is None and event.signature is None
        return len(self.blocks) - 1


async def _whole(events: AsyncIterator[Event], about: dict[str, Any], request: ChatRequest) -> AsyncIterator[bytes]:
    drafts = [_Draft() for _ in range(request.n)]
    usage: Usage | None = None
    async for event in events:
        if isinstance(event, Usage):
            usage = event
        elif not isinstance(event, Begin):
            drafts[event.index].add(event)
    choices = [
        {
            "index": index,
            "message": draft.message(),
            "logprobs": _logprobs(draft.tokens) if request.logprobs else None,
            **_finish(draft.end, refused=bool(draft.refusal)),
        }
        for index, draft in enumerate(drafts)
    ]
    answer = about | {"object": "chat.completion", "choices": choices}
    if usage is not None and (counts := _usage(usage)):
        answer["usage"] = counts
    yield msgspec.json.encode(answer)


async def _stream(
    events: AsyncIterator[Event], about: dict[str, Any], with_usage: bool, request: ChatRequest
) -> AsyncIterator[bytes]:
    chunk = about | {"object": "chat.completion.chunk"}
    common = b"data: " + msgspec.json.encode(chunk)[:-1] + (b',"usage":null' if with_usage else b"") + b',"choices":['
    choices: dict[int, _ChoiceWriter] = {}
    async for event in events:
        if isinstance(event, Begin):
            continue
        if isinstance(event, Usage):
            if with_usage and (counts := _usage(event)):
                yield b"data: " + msgspec.json.encode(chunk | {"choices": [], "usage": counts}) + b"\n\n"
            continue
        begin = b""
        if event.index not in choices:
            choices[event.index] = _ChoiceWriter(request.logprobs)
            begin = common + msgspec.json.encode(_opening(event)) + b"]}\n\n"
        choice = choices[event.index].choice(event)
        yield begin + common + msgspec.json.encode(choice) + b"]}\n\n"
    yield DONE


class _ChoiceWriter:
    """Writes one answer of a stream as its chunks' ``choices``."""

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._refused = False
        self._thoughts = _Thoughts()

    def choice(self, event: ChoiceEvent) -> dict[str, Any]:
        match event:
            case Delta():
                logprobs = _logprobs(event.tokens) if self._logprobs else None
                return _choice(event.index, {"content": event.text}, logprobs)
            case ThinkingDelta():
                return _choice(event.index, _thought(event, self._thoughts.add(event)))
            case RefusalDelta():
                self._refused = True
                return _choice(event.index, {"refusal": event.text})
            case ToolCallBegin():
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.call, "id": event.id, "type": "function", "function": function}
                return _choice(event.index, {"tool_calls": [call]})
            case ToolCallDelta():
                call = {"index": event.call, "function": {"arguments": event.arguments}}
                return _choice(event.index, {"tool_calls": [call]})
            case End():
                return _choice(event.index, {}) | _finish(event, refused=self._refused)


def _opening(event: ChoiceEvent) -> dict[str, Any]:
    """Return what comes before an answer's first event; content is null where it does not begin with text."""
    content = "" if isinstance(event, Delta | End) else None
    return _choice(event.index, {"role": "assistant", "content": content, "refusal": None})


def _choice(index: int, delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _thought(event: ThinkingDelta, place: int) -> dict[str, Any]:
    block = Thinking(text=event.text, signature=event.signature, redacted=event.redacted, id=event.id)
    shown = {"reasoning_content": event.text} if event.text else {}
    return {**shown, "reasoning_details": [_write_detail(block, place)]}


def _finish(end: End | None, *, refused: bool) -> dict[str, Any]:
    """Return why an answer ended; ``stop_reason`` is vLLM's name for the stop string that did it."""
    if end is None:
        return {"finish_reason": None}
    reason = "stop" if end.reason == "refusal" and refused else _FINISH.get(end.reason, end.reason)
    stop = {} if end.stop_sequence is None else {"stop_reason": end.stop_sequence}
    return {"finish_reason": reason, **stop}


def _logprobs(tokens: Iterable[SampledText]) -> dict[str, Any]:
    content = [_token(token) | {"top_logprobs": [_token(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _token(token: SampledText) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}


def _usage(usage: Usage) -> dict[str, Any] | None:
    """Return the counts; nothing where they are not known, since the format has no word for that."""
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    counts: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    of_input = {
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "audio_tokens": usage.input_audio_tokens,
    }
    of_output = {"reasoning_tokens": usage.reasoning_tokens, "audio_tokens": usage.output_audio_tokens}
    for name, details in (("prompt_tokens_details", of_input), ("completion_tokens_details", of_output)):
        if known := {part: count for part, count in details.items() if count is not None}:
            counts[name] = known
    return counts
