"""Hume's Octave speech, ``/v0/tts`` and its three siblings: utterances in, sound out; passes through.

A request names no model but a ``version`` of Octave; here that is the model ``hume/octave-1`` or ``hume/octave-2``, the
latter also where no version is given. What is paid for are the characters of the utterances, once per generation.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.dialects import media, wire
from doorstep.gateway.dialects.base import Head, Reading

PROVIDER = "hume"
NEWEST = "2"
SAMPLING = ("format", "num_generations", "split_utterances", "strip_headers", "instant_mode", "temperature", "version")


class Octave:
    """One of the four addresses."""

    def __init__(self, name: str, path: str, understand: Callable[[bytes], Reading], *, stream: bool) -> None:
        self.NAME = name
        self.PATH = path
        self.understand = understand
        self._stream = stream

    def head(self, body: bytes) -> Head:
        """Read what routing needs."""
        asked = wire.decode(_asked, body)
        if not asked.utterances:
            raise BadInput("utterances", "empty; give at least one with its text")
        characters = sum(len(utterance.text) for utterance in asked.utterances)
        return Head(
            model=f"{PROVIDER}/octave-{asked.version or NEWEST}",
            stream=self._stream,
            units={"characters": characters * (asked.num_generations or 1)},
        )

    def with_model(self, body: bytes, model: str) -> bytes:
        """Return the request with the version of this model; as it is where that is what it asks for already."""
        version = model.removeprefix("octave-")
        if (wire.decode(_asked, body).version or NEWEST) == version:
            return body
        fields = wire.decode(_raw, body)
        return msgspec.json.encode(fields | {"version": msgspec.Raw(msgspec.json.encode(version))})

    def is_last(self, piece: bytes) -> bool:  # noqa: ARG002
        """Return False: such a stream has no end mark."""
        return False

    def messages(self, body: bytes) -> list[dict[str, Any]]:
        """Return each utterance as a message, with its acting directions."""
        utterances = wire.decode(_objects, body)["utterances"]
        return [
            {"role": "user", "content": utterance["text"]} | {k: v for k, v in utterance.items() if k != "text"}
            for utterance in utterances
        ]

    def sampling(self, body: bytes) -> dict[str, Any]:
        """Return the settings of the sound, for the record."""
        return media.settings(body, SAMPLING)

    def error(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
        """Return an error's body as Hume writes it."""
        kind = "invalid_request" if status < 500 else "server_error"
        return msgspec.json.encode({"error": kind, "message": message, "code": code or param or str(status)})


class _Utterance(msgspec.Struct, frozen=True):
    text: str


class _Asked(msgspec.Struct, frozen=True):
    utterances: list[_Utterance]
    version: str | None = None
    num_generations: int | None = None


class _Answer(msgspec.Struct, frozen=True):
    generations: list[msgspec.Raw]


class _Piece(msgspec.Struct, frozen=True):
    """A line of a stream: some sound, or the time of a word. The last chunk of each snippet says so."""

    is_last_chunk: bool = False
    message: str | None = None  # of an error
    type: str = ""


_asked = msgspec.json.Decoder(_Asked)
_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])
_objects = msgspec.json.Decoder(dict[str, Any])
_pieces = msgspec.json.Decoder(_Piece)


def _understand_object(answer: bytes) -> Reading:
    complete = media.whole(answer, _Answer) is not None
    return Reading(finish_reason="stop" if complete else None, complete=complete)


def _understand_lines(answer: bytes) -> Reading:
    try:
        pieces = [_pieces.decode(line) for line in answer.splitlines() if line]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Reading(complete=False)
    failure = next((piece.message for piece in pieces if piece.type == "error"), None)
    complete = failure is None and any(piece.is_last_chunk for piece in pieces)
    return Reading(finish_reason="stop" if complete else None, error=failure, complete=complete)


def _understand_sound(_answer: bytes) -> Reading:
    """Sound in bytes says nothing about itself; whether it is whole is told by how its connection ended."""
    return Reading(finish_reason="stop")


TTS = Octave("hume.tts", "/v0/tts", _understand_object, stream=False)
TTS_FILE = Octave("hume.tts_file", "/v0/tts/file", _understand_sound, stream=False)
TTS_STREAM_JSON = Octave("hume.tts_stream_json", "/v0/tts/stream/json", _understand_lines, stream=True)
TTS_STREAM_FILE = Octave("hume.tts_stream_file", "/v0/tts/stream/file", _understand_sound, stream=True)
ALL = (TTS, TTS_FILE, TTS_STREAM_JSON, TTS_STREAM_FILE)
