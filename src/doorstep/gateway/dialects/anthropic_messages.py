"""Anthropic messages: the wire format, pure. Knows no provider and does no I/O.

Towards providers of the same dialect bodies pass as they are; only ``model`` is rewritten. Requests and answers are in
modules of their own beside this one.
"""

import re
from typing import Any

import msgspec

from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.anthropic_answers import STATUS, read_answer, understand, write
from doorstep.gateway.dialects.anthropic_requests import read
from doorstep.gateway.dialects.anthropic_sending import write_request
from doorstep.gateway.dialects.base import Head
from doorstep.gateway.dialects.wire import with_model

__all__ = [
    "NAME", "PATH", "error", "head", "is_last", "messages", "read", "read_answer", "sampling", "stream_error",
    "understand", "with_model", "write", "write_request",
]  # fmt: skip

NAME = "anthropic.messages"
PATH = "/v1/messages"

_SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "stop_sequences", "thinking", "output_config", "output_format",
    "tool_choice", "service_tier",
)  # fmt: skip
_KIND = {status: kind for kind, status in STATUS.items()}
_END = re.compile(rb'^(?:event: ?message_stop|data:.*"type": ?"message_stop")', re.MULTILINE)


class _Head(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None
    max_tokens: int | None = None


_heads = msgspec.json.Decoder(_Head)
_fields = msgspec.json.Decoder(dict[str, Any])


def head(body: bytes) -> Head:
    """Read what routing needs; of a field that comes twice the last one holds, here and in ``with_model``."""
    asked = wire.decode(_heads, body)
    return Head(model=asked.model, stream=bool(asked.stream), most_output=asked.max_tokens)


def is_last(piece: bytes) -> bool:
    """Tell whether a piece of a stream holds its end mark, after which a client stops reading."""
    return b"message_stop" in piece and _END.search(piece) is not None


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return the messages of a request as they were sent; its ``system`` is the first."""
    fields = wire.decode(_fields, body)
    found, system = fields.get("messages"), fields.get("system")
    first = [{"role": "system", "content": system}] if system else []
    return first + ([message for message in found if isinstance(message, dict)] if isinstance(found, list) else [])


def sampling(body: bytes) -> dict[str, Any]:
    """Return the sampling settings of a request, for the record."""
    fields = wire.decode(_fields, body)
    return {name: fields[name] for name in _SAMPLING if fields.get(name) is not None}


def error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """Return an error's body; the format has no place for ``param``, which the message names.

    A conversation that the service is to hold, ``thread``, has a code of its own: by it clients go on without one.
    """
    if param == "thread":
        code = "thread_unsupported_request"
    kind = _KIND.get(status, "api_error" if status >= 500 else "invalid_request_error")
    details = {} if code is None else {"details": {"error_code": code}}
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message} | details})


def stream_error(status: int, message: str) -> bytes:
    """Return the event by which a stream that has begun says why it breaks off."""
    return b"event: error\ndata: " + error(status, message) + b"\n\n"
