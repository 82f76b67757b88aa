"""OpenAI chat completions: the wire format, pure. Knows no provider and does no I/O.

Towards providers of the same dialect bodies pass as they are; only ``model`` is rewritten. What is read and written
otherwise is in the modules beside this one.
"""

from typing import Any

import msgspec

from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import Head
from doorstep.gateway.dialects.openai_chat_answers import read_answer, understand
from doorstep.gateway.dialects.openai_chat_requests import read
from doorstep.gateway.dialects.openai_chat_writing import write, write_request
from doorstep.gateway.dialects.wire import with_model

__all__ = [
    "NAME", "PATH", "error", "head", "is_last", "messages", "read", "read_answer", "sampling", "stream_error",
    "understand", "with_model", "write", "write_request",
]  # fmt: skip

NAME = "openai.chat"
PATH = "/v1/chat/completions"

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "logprobs",
    "top_logprobs", "presence_penalty", "frequency_penalty", "logit_bias", "tool_choice", "parallel_tool_calls",
    "response_format", "reasoning_effort", "reasoning", "thinking", "verbosity", "service_tier",
)  # fmt: skip

_DONE_ALONE = (b"data: [DONE]", b"data:[DONE]")
_DONE = tuple(b"\n" + line for line in _DONE_ALONE)  # no JSON has a line break in it


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Head(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    n: int | None = None


_heads = msgspec.json.Decoder(_Head)


def head(body: bytes) -> Head:
    """Read what routing needs; of a field that comes twice the last one holds, here and in ``with_model``."""
    asked = wire.decode(_heads, body)
    options, most = asked.stream_options, asked.max_completion_tokens or asked.max_tokens
    return Head(
        model=asked.model,
        stream=bool(asked.stream),
        usage=bool(options and options.include_usage),
        most_output=most and most * (asked.n or 1),
    )


def is_last(piece: bytes) -> bool:
    """Tell whether a piece of a stream is its end, after which a client stops reading."""
    tail = piece.rstrip()
    return tail.endswith(_DONE) or tail in _DONE_ALONE


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
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def stream_error(status: int, message: str) -> bytes:
    """Return the event by which a stream that has begun says why it breaks off."""
    return b"data: " + error(status, message) + b"\n\n"
