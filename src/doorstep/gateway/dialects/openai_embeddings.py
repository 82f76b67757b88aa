"""OpenAI embeddings: bodies pass as they are, only ``model`` is rewritten; there is no other format to translate to.

``encoding_format`` (numbers or base64), ``dimensions`` and the kinds of ``input`` are the provider's to judge.
"""

from typing import Any

import msgspec

from doorstep.gateway.chat import Usage
from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import Head, Reading
from doorstep.gateway.dialects.openai_chat import error
from doorstep.gateway.dialects.wire import with_model

__all__ = ["NAME", "PATH", "error", "head", "is_last", "messages", "sampling", "understand", "with_model"]

NAME = "openai.embeddings"
PATH = "/v1/embeddings"

_SAMPLING = ("encoding_format", "dimensions")


class _Head(msgspec.Struct, frozen=True):
    model: str


class _Request(msgspec.Struct, frozen=True):
    """``input`` is a text, texts, a text's token ids, or several texts' token ids."""

    input: str | list[str | int | list[int]] = ""


class _Counts(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None


class _Answer(msgspec.Struct, frozen=True):
    model: str | None = None
    usage: _Counts | None = None


_heads = msgspec.json.Decoder(_Head)
_requests = msgspec.json.Decoder(_Request)
_answers = msgspec.json.Decoder(_Answer)


def head(body: bytes) -> Head:
    """Read what routing needs; an embedding has no output tokens."""
    return Head(model=wire.decode(_heads, body).model, most_output=0)


def is_last(piece: bytes) -> bool:  # noqa: ARG001 - a dialect has it
    """There are no streams."""
    return False


def understand(answer: bytes) -> Reading:
    """Read the usage; the vectors stay in the body."""
    try:
        found = _answers.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Reading(complete=False)
    counts = found.usage or _Counts()
    output = None if counts.prompt_tokens is None else 0
    return Reading(
        finish_reason="stop", usage=Usage(input_tokens=counts.prompt_tokens, output_tokens=output), model=found.model
    )


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return the texts as a user's messages; token ids stay as they are."""
    given = wire.decode(_requests, body).input
    texts: list[Any] = given if isinstance(given, list) and not _is_tokens(given) else [given]
    return [{"role": "user", "content": text} for text in texts]


def sampling(body: bytes) -> dict[str, Any]:
    """Return the form that the vectors were asked in, for the record."""
    fields = msgspec.json.decode(body)
    return {name: fields[name] for name in _SAMPLING if fields.get(name) is not None}


def _is_tokens(given: list[Any]) -> bool:
    return bool(given) and all(isinstance(item, int) for item in given)
