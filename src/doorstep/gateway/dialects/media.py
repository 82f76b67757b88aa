"""What the dialects of pictures and sound have in common: requests as JSON or as a form, event streams, errors.

Of a request only a few fields are read and only ``model`` is ever rewritten; answers may be JSON, events, or the bytes
of a file, which nobody here looks into.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

import msgspec

from doorstep import ids
from doorstep.errors import BadInput
from doorstep.gateway.dialects import multipart, wire

MOST_BYTES = 100_000_000  # of a request that may hold pictures or sound

T = TypeVar("T", bound=msgspec.Struct)
_KINDS = {401: "authentication_error", 402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_error"}


def read(body: bytes, kind: type[T]) -> T:
    """Read the fields of ``kind`` from a request, JSON or a form; anything else in it is left alone."""
    if not multipart.is_form(body):
        decoder: msgspec.json.Decoder[T] = _decoder(kind)
        return wire.decode(decoder, body)
    try:
        return msgspec.convert(multipart.texts(body, kind.__struct_fields__), kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error) from None


def with_model(body: bytes, model: str) -> bytes:
    """Return the request with another model, every other value byte for byte as it was."""
    return multipart.with_text(body, "model", model) if multipart.is_form(body) else wire.with_model(body, model)


def settings(body: bytes, names: tuple[str, ...]) -> dict[str, Any]:
    """Return those of the named fields that a request has, for the record."""
    if multipart.is_form(body):
        found: dict[str, Any] = dict(multipart.texts(body, names))
    else:
        found = msgspec.json.decode(body)
    return {name: found[name] for name in names if found.get(name) is not None}


def files(body: bytes) -> list[dict[str, Any]]:
    """Return the files of a form as the record names them: what they are and the digest of their bytes."""
    if not multipart.is_form(body):
        return []
    return [
        {
            "type": "file",
            "field": part.name,
            "name": part.filename,
            "media_type": part.media_type,
            "sha256": ids.digest(body[part.start : part.end]),
        }
        for part in multipart.parts(body)
        if part.filename is not None
    ]


def message(text: str | None, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was asked as the one message of a user."""
    if not files:
        return [] if text is None else [{"role": "user", "content": text}]
    words = [] if text is None else [{"type": "text", "text": text}]
    return [{"role": "user", "content": [*words, *files]}]


def is_json(answer: bytes) -> bool:
    """Tell whether an answer looks like one JSON object."""
    return answer.lstrip().startswith(b"{")


def is_stream(answer: bytes) -> bool:
    """Tell whether an answer looks like an event stream."""
    return answer.startswith((b"data:", b"event:", b":", b"id:", b"retry:"))


def events(answer: bytes, kind: type[T]) -> Iterator[T]:
    """Yield the events of a stream that hold JSON of this kind; one that was cut in the middle is left out."""
    for line in answer.splitlines():
        if line.startswith(b"data:") and (data := line[5:].strip()).startswith(b"{"):
            try:
                yield _decoder(kind).decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue


def whole(answer: bytes, kind: type[T]) -> T | None:
    """Read an answer that is one JSON object; None for one that is not of this kind."""
    decoder: msgspec.json.Decoder[T] = _decoder(kind)
    try:
        return decoder.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def is_last(piece: bytes) -> bool:
    """Tell whether a piece holds the end mark. Most streams of media have none: their end is the end of the bytes."""
    return piece.rstrip().endswith(b"data: [DONE]")


def error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """Return an error's body as OpenAI writes it."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


@cache
def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind)


def invalid(error: msgspec.ValidationError) -> BadInput:
    """Name the field of a form that is wrong: msgspec ends its message with `` - at `$.field` ``, or names it first."""
    text, _, path = str(error).partition(" - at `$.")
    return BadInput(path.rstrip("`") or text.split("`")[1], text)


class Details(msgspec.Struct, frozen=True):
    """How many tokens of one side were of which kind."""

    text_tokens: int | None = None
    image_tokens: int | None = None
    audio_tokens: int | None = None
    cached_tokens: int | None = None


class Failure(msgspec.Struct, frozen=True):
    """What an error event says."""

    message: str = "an error event without a message"
