"""OpenAI's legacy completions: a text or token ids that a model goes on with, without roles.

Towards providers that have them bodies pass as they are; nothing else can be said in their place, so they are not
translated. Our own models answer one prompt a call.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import msgspec

from doorstep import ids
from doorstep.errors import BadInput
from doorstep.gateway.chat import ChatRequest, Delta, End, Event, SampledText, Usage
from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import Head, Reading
from doorstep.gateway.dialects.openai_chat import error, is_last
from doorstep.gateway.dialects.wire import with_model

__all__ = [
    "NAME", "PATH", "error", "head", "is_last", "messages", "read", "sampling", "understand", "with_model", "write",
]  # fmt: skip

NAME = "openai.completions"
PATH = "/v1/completions"
MOST = 16  # tokens, where a request does not say, as OpenAI has it

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "seed", "n", "logprobs", "presence_penalty",
    "frequency_penalty", "logit_bias",
)  # fmt: skip
_DONE = b"data: [DONE]\n\n"
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Prompt = str | list[int | str | list[int]]


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Head(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    prompt: _Prompt = ""


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What our own models take; labels and what the gateway reads itself are there to be allowed."""

    model: str
    prompt: _Prompt
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    text: str = ""
    finish_reason: str | None = None


class _Counts(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    model: str | None = None
    usage: _Counts | None = None
    error: Any = None


_heads = msgspec.json.Decoder(_Head)
_answers = msgspec.json.Decoder(_Answer)


def head(body: bytes) -> Head:
    """Read what routing needs."""
    asked = wire.decode(_heads, body)
    options = asked.stream_options
    return Head(
        model=asked.model,
        stream=bool(asked.stream),
        usage=bool(options and options.include_usage),
        most_output=(asked.max_tokens or MOST) * (asked.n or 1) * len(_prompts(asked.prompt)),
    )


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return the prompts as a user's messages; token ids stay as they are."""
    return [{"role": "user", "content": prompt} for prompt in _prompts(wire.decode(_heads, body).prompt)]


def sampling(body: bytes) -> dict[str, Any]:
    """Return the sampling settings of a request, for the record."""
    fields = msgspec.json.decode(body)
    return {name: fields[name] for name in _SAMPLING if fields.get(name) is not None}


def understand(answer: bytes) -> Reading:
    """Read a finished answer, whole or a stream, also one that was cut off."""
    lines = [line[5:].strip() for line in answer.split(b"\n") if line.startswith(b"data:")] or [answer]
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    usage, model, failed = Usage(), None, None
    for line in lines:
        try:
            part = _answers.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        model = part.model or model
        failed = failed or (wire.error_words(line) if part.error is not None else None)
        if part.usage is not None:
            usage = Usage(input_tokens=part.usage.prompt_tokens, output_tokens=part.usage.completion_tokens)
        for choice in part.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return Reading(
        texts=[texts[index] for index in sorted(texts)],
        finish_reason=reasons[max(reasons)] if reasons else None,
        usage=usage,
        model=model,
        error=failed,
        complete=failed is None and bool(texts) and reasons.keys() == texts.keys(),
    )


def read(body: bytes) -> tuple[str | list[int], ChatRequest]:
    """Read a request for our own models: the prompt, and how to sample."""
    asked = wire.convert(wire.fields(body), _Request, "")
    [prompt, *more] = _prompts(asked.prompt) or [""]
    if more:
        raise BadInput("prompt", "the local model takes one prompt a call; ask several times")
    return prompt, ChatRequest(
        messages=[],
        max_tokens=asked.max_tokens or MOST,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        n=asked.n or 1,
        logprobs=asked.logprobs is not None,
        top_logprobs=asked.logprobs,
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
        seed=asked.seed,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias=asked.logit_bias,
    )


def _prompts(given: _Prompt) -> list[Any]:
    """Return the prompts; a list of numbers is the token ids of one."""
    if isinstance(given, str) or (given and all(isinstance(item, int) for item in given)):
        return [given]
    return list(given)


# Answers


def write(
    events: AsyncIterator[Event], *, head: Head, answer_id: str, model: str, request: ChatRequest
) -> AsyncIterator[bytes]:
    """Yield an answer's bytes: all at once, or as they come when the request is for a stream."""
    about = {
        "id": f"cmpl-{answer_id}",
        "object": "text_completion",
        "created": ids.now_us() // 1_000_000,
        "model": model,
    }
    return _stream(events, about, head.usage, request) if head.stream else _whole(events, about, request)


async def _whole(events: AsyncIterator[Event], about: dict[str, Any], request: ChatRequest) -> AsyncIterator[bytes]:
    texts: list[str] = [""] * request.n
    tokens: list[list[SampledText]] = [[] for _ in texts]
    reasons: list[str | None] = [None] * request.n
    usage = Usage()
    async for event in events:
        match event:
            case Delta():
                texts[event.index] += event.text
                tokens[event.index] += event.tokens
            case End():
                reasons[event.index] = event.reason
            case Usage():
                usage = event
    choices = [
        _choice(index, text, _logprobs(tokens[index], 0) if request.logprobs else None, reasons[index])
        for index, text in enumerate(texts)
    ]
    yield msgspec.json.encode(about | {"choices": choices, "usage": _usage(usage)})


async def _stream(
    events: AsyncIterator[Event], about: dict[str, Any], with_usage: bool, request: ChatRequest
) -> AsyncIterator[bytes]:
    said = [0] * request.n  # characters
    async for event in events:
        chunk: dict[str, Any]
        match event:
            case Delta():
                logprobs = _logprobs(event.tokens, said[event.index]) if request.logprobs else None
                said[event.index] += len(event.text)
                chunk = {"choices": [_choice(event.index, event.text, logprobs, None)]}
            case End():
                chunk = {"choices": [_choice(event.index, "", None, event.reason)]}
            case Usage() if with_usage:
                chunk = {"choices": [], "usage": _usage(event)}
            case _:
                continue
        yield b"data: " + msgspec.json.encode(about | chunk) + b"\n\n"
    yield _DONE


def _choice(index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(tokens: Sequence[SampledText], start: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{other.text: other.logprob for other in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    given, said = usage.input_tokens or 0, usage.output_tokens or 0
    return {"prompt_tokens": given, "completion_tokens": said, "total_tokens": given + said}
