"""A fake provider: no model behind it, answers by rule, and fails where told to. For trying out and for tests.

It is there when ``doorstep.toml`` asks for it: ``[providers.NAME]`` with ``base_url = "fake:"``. It speaks every
dialect. Its models are the scripts below, ``NAME/echo`` and so on; tests give their own.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Literal, cast

import msgspec

from doorstep.errors import BadInput, NotFound, ProviderError
from doorstep.gateway.chat import (
    Begin,
    Block,
    ChatRequest,
    Delta,
    End,
    Event,
    Message,
    Reason,
    RefusalDelta,
    Text,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolCallBegin,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from doorstep.gateway.dialects.base import ChatDialect
from doorstep.gateway.providers import fake_media, fake_values
from doorstep.gateway.providers.base import Answer, Ask, Key, content_type, from_generator

SCHEME = "fake:"
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBmYWtlIHByb3ZpZGVy"  # opaque to everybody, as real ones are
GARBAGE = b'data: {"choices": [{"delta": {"content": "ha\n\n'


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """How a fake model answers, and what goes wrong: ``fault``, in place of a whole answer or after so many pieces.

    ``silence``: nothing more comes, ever · ``cut``: the connection breaks · ``error``: an error event, or an error as
    the body, with status 200 · ``garbage``: what no parser takes · ``empty``: status 200 and no body.
    """

    says: Literal["text", "thinking", "tools", "agent", "json", "refusal"] = "text"  # agent: thinks, then calls tools
    text: str | None = None  # None: repeats the last message
    repeat: int = 1  # the text so many times
    chunk: int = 4  # characters at a time
    delay_s: float = 0.0  # before each piece
    bytes_at_once: int | None = None  # pieces are cut into such bits, with the delay before each
    refuse: int | None = None  # HTTP status given instead of an answer
    retry_after_s: float | None = None  # told with it
    fails: int = 0  # so many calls fail with status 503 before one is answered
    fault: Literal["silence", "cut", "error", "garbage", "empty"] | None = None
    after: int = 0  # pieces of a stream


SCRIPTS: Mapping[str, Script] = {
    "echo": Script(),
    "slow": Script(delay_s=0.05),
    "drip": Script(delay_s=0.002, bytes_at_once=1),
    "huge": Script(text="all work and no play ", repeat=100_000, chunk=16_384),
    "thinking": Script(says="thinking"),
    "tools": Script(says="tools"),
    "agent": Script(says="agent"),
    "json": Script(says="json"),
    "refusal": Script(says="refusal", text="I cannot help with that."),
    "busy": Script(refuse=429, retry_after_s=1),
    "flaky": Script(fails=2),
    "silent": Script(fault="silence"),
    "empty": Script(fault="empty"),
    "broken": Script(fault="cut", after=2),
    "error-after-200": Script(fault="error", after=2),
    "malformed": Script(fault="garbage", after=2),
}


class FakeProvider:
    """Answers by script. ``cancelled`` counts the answers that were given up by the one who asked."""

    def __init__(self, name: str, scripts: Mapping[str, Script] = SCRIPTS, keys: tuple[Key, ...] = ()) -> None:
        self.name = name
        self.keys = keys
        self.asked: Counter[str] = Counter()  # calls by model
        self.cancelled = 0
        self._scripts = scripts

    async def answer(self, ask: Ask) -> Answer:
        """Answer by the script of the model."""
        script = self._scripts.get(ask.model)
        if script is None:
            raise NotFound(f"the fake provider has no model '{ask.model}'; it has {', '.join(self._scripts)}")
        number = self.asked[ask.model]
        self.asked[ask.model] += 1
        if script.refuse is not None:
            return _refusal(ask, script.refuse, script.retry_after_s)
        if number % (script.fails + 1) < script.fails:
            return _refusal(ask, 503, script.retry_after_s)
        kind, pieces = _answer(script, ask)
        body = self._watched(script, ask, pieces)
        if ask.head.stream:
            return Answer(body=from_generator(body), content_type=kind)
        return Answer(body=b"".join([piece async for piece in body]), content_type=kind)

    async def close(self) -> None:
        """There is nothing to let go of."""

    async def _watched(self, script: Script, ask: Ask, pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """Yield an answer's bytes at the script's pace, and let go wrong what is to go wrong."""
        after = script.after if ask.head.stream else 0
        try:
            async with aclosing(_bits(pieces, script.bytes_at_once)) as bits:
                number = 0
                async for bit in bits:
                    if script.fault is not None and number == after:
                        break
                    if script.delay_s:
                        await asyncio.sleep(script.delay_s)
                    yield bit
                    number += 1
            if script.fault is not None:
                yield await _fault(script.fault, ask)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


async def _fault(fault: str, ask: Ask) -> bytes:
    message = "the fake provider fails here, as told"
    match fault:
        case "silence":
            await asyncio.Event().wait()
        case "cut":
            raise ProviderError("the fake provider breaks off here, as told")
        case "garbage":
            return GARBAGE
        case "error":
            if ask.head.stream and isinstance(ask.dialect, ChatDialect):
                return ask.dialect.stream_error(500, message)
            return ask.dialect.error(500, message)
    return b""


async def _bits(pieces: AsyncGenerator[bytes], size: int | None) -> AsyncGenerator[bytes]:
    async with aclosing(pieces):
        async for piece in pieces:
            step = size or len(piece)
            for start in range(0, len(piece), step):
                yield piece[start : start + step]


def _refusal(ask: Ask, status: int, retry_after_s: float | None) -> Answer:
    headers = {} if retry_after_s is None else {"retry-after": f"{retry_after_s:g}"}
    body = ask.dialect.error(status, f"the fake provider refuses with {status}, as told")
    return Answer(status=status, headers=headers, body=body)


def _answer(script: Script, ask: Ask) -> tuple[str, AsyncGenerator[bytes]]:
    """Return the content type of an answer and its bytes."""
    dialect = ask.dialect
    if not isinstance(dialect, ChatDialect):
        kind, made = fake_media.answer(ask)
        return kind, _each(made)
    request = dialect.read(ask.body)
    if request.logprobs:
        raise BadInput("logprobs", "the fake provider samples nothing, so it has none")
    _check_signatures(request)
    events = _events(script, request, ask)
    pieces = dialect.write(events, head=ask.head, answer_id=ask.call_id, model=ask.model, request=request)
    return content_type(ask.head), cast("AsyncGenerator[bytes]", pieces)


async def _each(pieces: list[bytes]) -> AsyncGenerator[bytes]:
    for piece in pieces:
        yield piece


# What it says

_THINKING = ("thinking", "agent")
_CALLING = ("tools", "agent")


def _check_signatures(request: ChatRequest) -> None:
    """Refuse thinking under another signature than ours, as real providers do."""
    for message in request.messages:
        for block in message.blocks:
            if isinstance(block, Thinking) and block.signature not in (None, SIGNATURE):
                raise BadInput("signature", "of a thinking block is not the one that the fake provider gave with it")


async def _events(script: Script, request: ChatRequest, ask: Ask) -> AsyncIterator[Event]:
    said = script.text if script.text is not None else _said(request.messages[-1])
    tools = _chosen(request) if script.says in _CALLING else []
    yield Begin(id=f"fake_{ask.call_id}", model=ask.model)
    output = 0
    for index in range(request.n):
        if script.says in _THINKING:
            for word in ("Let me ", "think."):
                yield ThinkingDelta(index, word)
            yield ThinkingDelta(index, signature=SIGNATURE)
        text, reason = _cut(_text(script, request, said), request)
        for start in range(0, len(text), script.chunk):
            part = text[start : start + script.chunk]
            yield RefusalDelta(index, part) if script.says == "refusal" else Delta(index, part)
        for call, tool in enumerate(tools):
            yield ToolCallBegin(index, call, f"call_{ask.call_id[-8:]}_{index}_{call}", tool.name)
            arguments = msgspec.json.encode(fake_values.example(tool.parameters or {})).decode()
            for start in range(0, len(arguments), script.chunk):
                yield ToolCallDelta(index, call, arguments[start : start + script.chunk])
        output += _words(text) + len(tools)
        yield End(index, "tool_calls" if tools else reason)
    thought = 3 * request.n if script.says in _THINKING else None
    asked = sum(_words(_said(message)) for message in request.messages)
    yield Usage(input_tokens=asked, output_tokens=output + (thought or 0), reasoning_tokens=thought)


def _text(script: Script, request: ChatRequest, said: str) -> str:
    if script.says in _CALLING and _chosen(request):
        return ""
    if script.says == "json":
        schema = request.answer_format.schema if request.answer_format else None
        value: Any = {"answer": said} if schema is None else fake_values.example(schema)
        return msgspec.json.encode(value).decode()
    return said * script.repeat


def _cut(text: str, request: ChatRequest) -> tuple[str, Reason]:
    """Return what of a text the request leaves room for; a word is a token."""
    if request.max_tokens is None or _words(text) <= request.max_tokens:
        return text, "stop"
    return " ".join(text.split()[: request.max_tokens]), "length"


def _chosen(request: ChatRequest) -> list[Tool]:
    """Return the tools to call: the first one, or two where they may be called at once; none after their results."""
    choice = request.tool_choice
    if not request.tools or request.messages[-1].role == "tool" or (choice and choice.mode == "none"):
        return []
    if choice is not None and choice.mode == "one":
        return [tool for tool in request.tools if tool.name == choice.name]
    return request.tools[: 1 if request.parallel_tool_calls is False else 2]


def _said(message: Message) -> str:
    return " ".join(_shown(block) for block in message.blocks)


def _shown(block: Block) -> str:
    if isinstance(block, Text):
        return block.text
    if isinstance(block, ToolResult):
        return " ".join(_shown(part) for part in block.content)
    return f"[{type(block).__name__.lower()}]"


def _words(text: str) -> int:
    return len(text.split())
