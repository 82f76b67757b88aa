"""OpenAI Responses: the wire format, pure. Knows no provider and does no I/O.

Towards providers of the same dialect bodies pass as they are; only ``model`` is rewritten. Requests, sealed reasoning,
the writing of answers and their reading are in modules of their own beside this one.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import Head
from doorstep.gateway.dialects.openai_chat import error
from doorstep.gateway.dialects.openai_responses_answers import read_answer, understand
from doorstep.gateway.dialects.openai_responses_requests import read
from doorstep.gateway.dialects.openai_responses_sending import write_request
from doorstep.gateway.dialects.openai_responses_writing import frame, write
from doorstep.gateway.dialects.wire import with_model

__all__ = [
    "NAME", "PATH", "error", "head", "is_last", "messages", "read", "read_answer", "sampling", "stream_error",
    "understand", "with_model", "write", "write_request",
]  # fmt: skip

NAME = "openai.responses"
PATH = "/v1/responses"

_SAMPLING = (
    "temperature", "top_p", "max_output_tokens", "top_logprobs", "tool_choice", "parallel_tool_calls", "text",
    "reasoning", "truncation", "service_tier",
)  # fmt: skip

# Neither a line that begins so nor these quotes can occur in the text of an answer: there they are escaped.
_END_MARK = re.compile(
    rb"^event: ?(?:response\.(?:completed|incomplete|failed)|error)\r?$"
    rb'|"type": ?"response\.(?:completed|incomplete|failed)"',
    re.MULTILINE,
)


class _Head(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None
    max_output_tokens: int | None = None


_heads = msgspec.json.Decoder(_Head)
_objects = msgspec.json.Decoder(dict[str, Any])


def head(body: bytes) -> Head:
    """Read what routing needs. A stream always ends with its usage."""
    asked = wire.decode(_heads, body)
    return Head(model=asked.model, stream=bool(asked.stream), most_output=asked.max_output_tokens)


def is_last(piece: bytes) -> bool:
    """Tell whether a piece of a stream holds its end mark, after which a client stops reading."""
    if b"complete" not in piece and b"failed" not in piece and b"error" not in piece:  # for speed
        return False
    return _END_MARK.search(piece) is not None


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return what was said in a request, item by item as it was sent; the role of items that have none is added."""
    fields = wire.decode(_objects, body)
    asked, instructions = fields.get("input"), fields.get("instructions")
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    found = [{"role": "system", "content": instructions}] if isinstance(instructions, str) else []
    found += [item for item in asked if isinstance(item, dict)] if isinstance(asked, list) else []
    return [{"role": _role(item)} | item for item in found]


def sampling(body: bytes) -> dict[str, Any]:
    """Return the sampling settings of a request, for the record."""
    fields = wire.decode(_objects, body)
    return {name: fields[name] for name in _SAMPLING if fields.get(name) is not None}


def stream_error(status: int, message: str) -> bytes:
    """Return the error event. OpenAI describes the flat fields; its SDK raises for the nested ones."""
    told = msgspec.json.decode(error(status, message))["error"]
    flat = {"code": told["type"], "message": message, "param": None}
    return frame("error", 0, {**flat, "error": told})


def _role(item: Mapping[str, Any]) -> str:
    return "tool" if str(item.get("type")).endswith("_output") else "assistant"
