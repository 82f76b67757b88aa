"""OpenAI transcription, ``/v1/audio/transcriptions``: sound in a form, its words out; passes through.

An answer says what it cost in tokens or in seconds of sound, as its model is paid; one in plain text or as subtitles
does not say it.
"""

from typing import Any

import msgspec

from doorstep.gateway.chat import Usage
from doorstep.gateway.dialects import media
from doorstep.gateway.dialects.base import Head, Reading

NAME = "openai.transcription"
PATH = "/v1/audio/transcriptions"
MOST_BYTES = media.MOST_BYTES
SAMPLING = ("language", "prompt", "response_format", "temperature", "chunking_strategy")

with_model = media.with_model
is_last = media.is_last
error = media.error


class _Head(msgspec.Struct, frozen=True):
    model: str
    stream: bool | None = None


class _Asked(msgspec.Struct, frozen=True):
    prompt: str | None = None


class _Counts(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_token_details: media.Details | None = None
    seconds: float | None = None


class _Answer(msgspec.Struct, frozen=True):
    """A whole answer, or an event: the last one, ``transcript.text.done``, has the whole text."""

    type: str = ""
    text: str | None = None
    delta: str = ""
    usage: _Counts | None = None
    duration: float | str | None = None  # whisper wrote it as a string once
    error: media.Failure | None = None


def head(body: bytes) -> Head:
    """Read what routing needs."""
    asked = media.read(body, _Head)
    return Head(model=asked.model, stream=bool(asked.stream))


def understand(answer: bytes) -> Reading:
    """Read a finished answer: JSON, a stream, or plain text, also one that was cut off."""
    if media.is_stream(answer):
        return _understand_stream(answer)
    found = media.whole(answer, _Answer)
    if found is not None and found.text is not None:
        return Reading(texts=[found.text], finish_reason="stop", usage=_usage(found))
    if media.is_json(answer):
        return Reading(complete=False)
    return Reading(texts=[answer.decode("utf-8", "replace")], finish_reason="stop")


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return the prompt and the sound as a message."""
    return media.message(media.read(body, _Asked).prompt, media.files(body))


def sampling(body: bytes) -> dict[str, Any]:
    """Return the settings, for the record."""
    return media.settings(body, SAMPLING)


def _understand_stream(answer: bytes) -> Reading:
    words: list[str] = []
    last, failure = None, None
    for event in media.events(answer, _Answer):
        words.append(event.delta)
        if event.type == "transcript.text.done":
            last = event
        elif event.error is not None:
            failure = event.error.message
    if last is None or failure is not None:
        return Reading(texts=["".join(words)], error=failure, complete=False)
    return Reading(texts=[last.text or "".join(words)], finish_reason="stop", usage=_usage(last))


def _usage(answer: _Answer) -> Usage:
    counts = answer.usage or _Counts()
    details = counts.input_token_details or media.Details()
    seconds = counts.seconds if counts.seconds is not None or counts.input_tokens is not None else _seconds(answer)
    return Usage(
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        input_audio_tokens=details.audio_tokens,
        units={} if seconds is None else {"seconds": seconds},
    )


def _seconds(answer: _Answer) -> float | None:
    try:
        return None if answer.duration is None else float(answer.duration)
    except ValueError:
        return None
