"""OpenAI speech, ``/v1/audio/speech``: text in, sound out as bytes or as events; passes through.

An answer in bytes tells nothing of what it cost: the characters that are paid for are counted in the request.
"""

from typing import Any

import msgspec

from doorstep.gateway.chat import Usage
from doorstep.gateway.dialects import media
from doorstep.gateway.dialects.base import Head, Reading

NAME = "openai.speech"
PATH = "/v1/audio/speech"
MOST_BYTES = media.MOST_BYTES
SAMPLING = ("voice", "instructions", "response_format", "speed", "stream_format")

with_model = media.with_model
is_last = media.is_last
error = media.error


class _Head(msgspec.Struct, frozen=True):
    model: str
    input: str
    stream_format: str | None = None


class _Asked(msgspec.Struct, frozen=True):
    input: str | None = None


class _Counts(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str = ""
    usage: _Counts | None = None
    error: media.Failure | None = None


def head(body: bytes) -> Head:
    """Read what routing needs."""
    asked = media.read(body, _Head)
    return Head(model=asked.model, stream=asked.stream_format == "sse", units={"characters": len(asked.input)})


def understand(answer: bytes) -> Reading:
    """Read a finished answer: the end of a stream of events; sound in bytes is left alone."""
    if not media.is_stream(answer):
        return Reading(finish_reason="stop")
    counts, failure, done = _Counts(), None, False
    for event in media.events(answer, _Event):
        if event.type == "speech.audio.done":
            counts, done = event.usage or counts, True
        elif event.error is not None:
            failure = event.error.message
    complete = done and failure is None
    return Reading(
        finish_reason="stop" if complete else None,
        usage=Usage(
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
            output_audio_tokens=counts.output_tokens,
        ),
        error=failure,
        complete=complete,
    )


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return the text as a message."""
    return media.message(media.read(body, _Asked).input, [])


def sampling(body: bytes) -> dict[str, Any]:
    """Return the settings of the voice, for the record."""
    return media.settings(body, SAMPLING)
