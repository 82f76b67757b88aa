"""OpenAI image generation, ``/v1/images/generations``: passes through, streams of partial images too."""

from typing import Any

import msgspec

from doorstep.gateway.chat import Usage
from doorstep.gateway.dialects import media
from doorstep.gateway.dialects.base import Head, Reading

NAME = "openai.images"
PATH = "/v1/images/generations"
MOST_BYTES = media.MOST_BYTES
SAMPLING = (
    "n", "size", "quality", "style", "background", "moderation", "output_format", "output_compression",
    "response_format", "partial_images", "input_fidelity",
)  # fmt: skip

with_model = media.with_model
is_last = media.is_last
error = media.error


class _Head(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None
    n: int | None = None


class _Asked(msgspec.Struct, frozen=True):
    prompt: str | None = None


class _Counts(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: media.Details | None = None
    output_tokens_details: media.Details | None = None


class _Answer(msgspec.Struct, frozen=True):
    data: list[msgspec.Raw] = []
    usage: _Counts | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str = ""
    usage: _Counts | None = None
    error: media.Failure | None = None


def head(body: bytes) -> Head:
    """Read what routing needs."""
    asked = media.read(body, _Head)
    return Head(model=asked.model, stream=bool(asked.stream), units={"images": asked.n or 1})


def understand(answer: bytes) -> Reading:
    """Read a finished answer, whole or a stream, also one that was cut off; the pictures are left alone."""
    if media.is_stream(answer):
        return _understand_stream(answer)
    found = media.whole(answer, _Answer)
    if found is None:
        return Reading(complete=False)
    return Reading(finish_reason="stop", usage=_usage(found.usage, len(found.data)))


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return the prompt, with the pictures that came as files, as a message."""
    return media.message(media.read(body, _Asked).prompt, media.files(body))


def sampling(body: bytes) -> dict[str, Any]:
    """Return the settings of the picture, for the record."""
    return media.settings(body, SAMPLING)


def _understand_stream(answer: bytes) -> Reading:
    images, counts, failure = 0, None, None
    for event in media.events(answer, _Event):
        if event.type.endswith(".completed"):  # image_generation.completed, image_edit.completed
            images, counts = images + 1, event.usage or counts
        elif event.error is not None:
            failure = event.error.message
    complete = images > 0 and failure is None
    return Reading(
        finish_reason="stop" if complete else None, usage=_usage(counts, images), error=failure, complete=complete
    )


def _usage(counts: _Counts | None, images: int) -> Usage:
    counts = counts or _Counts()
    given, made = counts.input_tokens_details or media.Details(), counts.output_tokens_details or media.Details()
    units = {"images": images, "input_image_tokens": given.image_tokens, "output_image_tokens": made.image_tokens}
    return Usage(
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        cached_tokens=given.cached_tokens,
        units={name: value for name, value in units.items() if value},
    )
