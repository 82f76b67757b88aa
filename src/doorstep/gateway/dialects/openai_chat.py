"""OpenAI chat completions: the wire format, pure. Knows no provider and does no I/O.

Towards providers of the same dialect bodies pass as they are; only ``model`` is rewritten.
"""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Annotated, Any

import msgspec

from doorstep import ids
from doorstep.errors import BadInput
from doorstep.gateway.chat import ChatRequest, Delta, End, Event, SampledText, Usage
from doorstep.gateway.dialects.base import Head, Reading

NAME = "openai.chat"
DONE = b"data: [DONE]\n\n"

_SAMPLING = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "logprobs", "top_logprobs",
    "presence_penalty", "frequency_penalty", "response_format", "reasoning_effort",
)  # fmt: skip

# Change nothing in what is sampled: accounting, caching and labels of the hosted service.
_HARMLESS = frozenset((
    "model", "stream", "stream_options", "user", "metadata", "store", "service_tier", "prompt_cache_key",
    "prompt_cache_retention", "safety_identifier",
))  # fmt: skip

# Fields that our models do not serve, at the values where they ask for nothing. ``None`` is such a value for any field.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}

_Text = Annotated[str, msgspec.Meta(min_length=1)]


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Head(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Served(msgspec.Struct, frozen=True):
    """The fields that our own models serve."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    stop: _Text | Annotated[list[_Text], msgspec.Meta(max_length=4)] | None = None
    seed: int | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    logprobs: bool | None = None


_SERVED = frozenset(_Served.__struct_fields__)
_heads = msgspec.json.Decoder(_Head)
_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])


def head(body: bytes) -> Head:
    """Read what routing needs."""
    try:
        asked = _heads.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except msgspec.DecodeError as error:
        raise BadInput("body", f"not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise BadInput("body", "not valid UTF-8") from None
    options = asked.stream_options
    return Head(model=asked.model, stream=bool(asked.stream), usage=bool(options and options.include_usage))


def read(body: bytes) -> ChatRequest:
    """Read a request for our own models; ``BadInput`` names a field that they cannot serve."""
    fields: dict[str, Any] = msgspec.json.decode(body)
    for name, value in fields.items():
        if name not in _SERVED and name not in _HARMLESS and value is not None:
            _check_neutral(name, value)
    try:
        asked = msgspec.convert({name: fields[name] for name in fields.keys() & _SERVED}, _Served)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    return ChatRequest(
        messages=asked.messages,
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
        seed=asked.seed,
        n=asked.n or 1,
        logprobs=bool(asked.logprobs),
    )


def write(
    events: AsyncGenerator[Event], *, head: Head, answer_id: str, model: str, request: ChatRequest
) -> AsyncGenerator[bytes]:
    """Yield an answer's bytes: all at once, or as they come when the request is for a stream."""
    about = {"id": f"chatcmpl-{answer_id}", "created": ids.now_us() // 1_000_000, "model": model}
    if head.stream:
        return _stream(events, about, head.usage, request)
    return _whole(events, about, request)


def with_model(body: bytes, model: str) -> bytes:
    """Return the request with another model, every other value byte for byte as it was."""
    fields = _raw.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def is_last(piece: bytes) -> bool:
    """Tell whether a piece of a stream is its end, after which a client stops reading."""
    return piece.rstrip().endswith(b"data: [DONE]")


def understand(answer: bytes) -> Reading:
    """Read a finished answer, whole or a stream, also one that was cut off; what is not there stays unknown."""
    try:
        return _understand_whole(answer) if answer.lstrip().startswith(b"{") else _understand_stream(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Reading()


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return the messages of a request as they were sent."""
    found = msgspec.json.decode(body).get("messages")
    return [message for message in found if isinstance(message, dict)] if isinstance(found, list) else []


def sampling(body: bytes) -> dict[str, Any]:
    """Return the sampling settings of a request, for the record."""
    fields = msgspec.json.decode(body)
    return {name: fields[name] for name in _SAMPLING if fields.get(name) is not None}


def error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """Return an error's body."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


# Reading requests


def _check_neutral(name: str, value: Any) -> None:
    if name == "top_logprobs" and value == 0:
        return
    if value not in _NEUTRAL.get(name, ()):
        raise BadInput(name, "not served by the local model; leave it out or use a hosted model")


def _invalid(error: msgspec.ValidationError) -> BadInput:
    """Name the field of a validation error; msgspec ends its message with the path ``- at `$.field` ``."""
    text, _, path = str(error).partition(" - at `$")
    where = path.rstrip("`").lstrip(".") or (text.split("`")[1] if "required field" in text else "body")
    return BadInput(where, text)


# Writing answers


async def _whole(events: AsyncGenerator[Event], about: dict[str, Any], request: ChatRequest) -> AsyncGenerator[bytes]:
    texts: list[list[str]] = [[] for _ in range(request.n)]
    tokens: list[list[SampledText]] = [[] for _ in range(request.n)]
    reasons: list[str | None] = [None] * request.n
    usage: dict[str, int] = {}
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                texts[event.index].append(event.text)
                tokens[event.index] += event.tokens
            elif isinstance(event, End):
                reasons[event.index] = event.reason
            else:
                usage = _usage(event)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": "".join(texts[index]), "refusal": None},
            "logprobs": _logprobs(tokens[index]) if request.logprobs else None,
            "finish_reason": reasons[index],
        }
        for index in range(request.n)
    ]
    yield msgspec.json.encode(about | {"object": "chat.completion", "choices": choices, "usage": usage})


async def _stream(
    events: AsyncGenerator[Event], about: dict[str, Any], with_usage: bool, request: ChatRequest
) -> AsyncGenerator[bytes]:
    chunk = about | {"object": "chat.completion.chunk"}
    common = b"data: " + msgspec.json.encode(chunk)[:-1] + (b',"usage":null' if with_usage else b"") + b',"choices":['
    opening: list[Any] = [_choice(index, {"role": "assistant", "content": ""}) for index in range(request.n)]
    begin = b"".join(common + choice + b"]}\n\n" for choice in opening)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                logprobs = _logprobs(event.tokens) if request.logprobs else None
                yield begin + common + _choice(event.index, {"content": event.text}, logprobs) + b"]}\n\n"
            elif isinstance(event, End):
                yield begin + common + _choice(event.index, {}, None, event.reason) + b"]}\n\n"
            elif with_usage:
                yield b"data: " + msgspec.json.encode(chunk | {"choices": [], "usage": _usage(event)}) + b"\n\n"
            begin = b""
    yield DONE


def _choice(index: int, delta: dict[str, str], logprobs: Any = None, reason: str | None = None) -> bytes:
    return msgspec.json.encode({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})


def _logprobs(tokens: Iterable[SampledText]) -> dict[str, Any]:
    content = [
        {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes), "top_logprobs": []}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _usage(usage: Usage) -> dict[str, int]:
    total = usage.input_tokens + usage.output_tokens
    return {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens, "total_tokens": total}


# Understanding answers that passed through


class _Counts(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Words(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    message: _Words | None = None
    delta: _Words | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Counts | None = None


_answers = msgspec.json.Decoder(_Answer)


def _understand_whole(answer: bytes) -> Reading:
    return _reading([_answers.decode(answer)])


def _understand_stream(answer: bytes) -> Reading:
    lines = (line[5:].strip() for line in answer.splitlines() if line.startswith(b"data:"))
    return _reading([_answers.decode(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")])


def _reading(parts: list[_Answer]) -> Reading:
    texts: dict[int, list[str]] = {}
    reason, counts = None, _Counts()
    for part in parts:
        counts = part.usage or counts
        for choice in part.choices:
            words = choice.message or choice.delta
            texts.setdefault(choice.index, []).append((words and words.content) or "")
            reason = choice.finish_reason or reason
    return Reading(
        texts=["".join(texts[index]) for index in sorted(texts)],
        finish_reason=reason,
        input_tokens=counts.prompt_tokens,
        output_tokens=counts.completion_tokens,
    )
