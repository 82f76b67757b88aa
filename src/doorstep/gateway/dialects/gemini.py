"""Gemini's ``generateContent`` and ``streamGenerateContent``, in its own format: passes through, pictures too.

The model and whether the answer is a stream are in the address, not in the body, so the dialect of a call is made from
its address: ``at``. The record, which knows the call's model, reads with ``READER``.
"""

import re
from typing import Any
from urllib.parse import unquote

import msgspec

from doorstep.gateway.chat import Usage
from doorstep.gateway.dialects import media, wire
from doorstep.gateway.dialects.base import Head, Reading

NAME = "google.generate_content"
PROVIDER = "google"  # whose bare model names the addresses under ``/google`` take
PATH = "/v1beta/models/"
MOST_BYTES = media.MOST_BYTES
WHOLE, STREAM = "generateContent", "streamGenerateContent"

# The model goes into an address again, so it is letters, digits and a few signs, without empty or hidden steps.
_STEP = r"[A-Za-z0-9_@-][A-Za-z0-9._@:-]*"
_ADDRESS = re.compile(rf"/v1(?:beta)?/models/({_STEP}(?:/{_STEP})*):({WHOLE}|{STREAM})")

_STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip


def at(path: str, query: str = "") -> "GenerateContent | None":
    """Return the dialect of a call to this address, or None when it is none of these.

    ``/v1beta/models/google/gemini-3-pro:generateContent``, or ``/google/v1beta/models/gemini-3-pro:generateContent``
    for a client that has ``/google`` as its address and names models as Google does. ``/v1`` is as ``/v1beta`` is.
    """
    path = unquote(path)
    own = path.startswith(f"/{PROVIDER}/")
    path = path.removeprefix(f"/{PROVIDER}") if own else path
    found = _ADDRESS.fullmatch(path)
    if found is None:
        return None
    model, action = found.groups()
    return GenerateContent(f"{PROVIDER}/{model}" if own else model, action, query)


class GenerateContent:
    """One call's dialect."""

    NAME = NAME
    PATH = PATH
    MOST_BYTES = MOST_BYTES

    def __init__(self, model: str, action: str = WHOLE, query: str = "") -> None:
        self._model = model
        self._action = action
        self._events = "alt=sse" in query.split("&")  # otherwise a stream is one JSON array that grows

    def head(self, body: bytes) -> Head:
        """Read what routing needs."""
        limits = wire.decode(_heads, body).generationConfig
        most = limits.maxOutputTokens
        return Head(
            model=self._model,
            stream=self._action == STREAM,
            most_output=None if most is None else most * (limits.candidateCount or 1),
        )

    def with_model(self, body: bytes, model: str) -> bytes:  # noqa: ARG002 - it is in the address
        """Return the request as it is: its address names the model."""
        return body

    def upstream_path(self, model: str) -> str:
        """Return where a provider of this dialect is asked, under its root."""
        return f"{PATH}{model}:{self._action}" + ("?alt=sse" if self._events else "")

    def is_last(self, piece: bytes) -> bool:  # noqa: ARG002
        """Return False: such a stream has no end mark."""
        return False

    def understand(self, answer: bytes) -> Reading:
        """Read a finished answer: one object, an array of them, or events, also one that was cut off."""
        if media.is_stream(answer):
            return _reading(list(media.events(answer, _Answer)))
        try:
            found = _answers.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Reading(complete=False)
        return _reading(found if isinstance(found, list) else [found])

    def messages(self, body: bytes) -> list[dict[str, Any]]:
        """Return what was said, each turn with its ``role``; the pictures in it stay where they are."""
        asked = wire.decode(_asked, body)
        given = asked.systemInstruction or asked.system_instruction
        system = [] if given is None else [{**given, "role": "system"}]
        return [*system, *({"role": "user", **content} for content in asked.contents)]

    def sampling(self, body: bytes) -> dict[str, Any]:
        """Return the generation settings, for the record."""
        asked = msgspec.json.decode(body)
        found = asked.get("generationConfig", asked.get("generation_config"))
        return dict(found) if isinstance(found, dict) else {}

    def error(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
        """Return an error's body as Google writes it."""
        name = _STATUS.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
        details: list[dict[str, Any]] = []
        if code:
            details.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code})
        if param:
            violation = {"field": param, "description": message}
            details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
        return msgspec.json.encode(
            {"error": {"code": status, "message": message, "status": name} | ({"details": details} if details else {})}
        )


class _Limits(msgspec.Struct, frozen=True):
    maxOutputTokens: int | None = None  # noqa: N815 - as on the wire
    candidateCount: int | None = None  # noqa: N815


class _Head(msgspec.Struct, frozen=True):
    generationConfig: _Limits = _Limits()  # noqa: N815


class _Asked(msgspec.Struct, frozen=True):
    """What was said. Google takes its fields in both spellings."""

    contents: list[dict[str, Any]] = []
    systemInstruction: dict[str, Any] | None = None  # noqa: N815
    system_instruction: dict[str, Any] | None = None


class _Blob(msgspec.Struct, frozen=True):
    mimeType: str = ""  # noqa: N815


class _Part(msgspec.Struct, frozen=True):
    text: str | None = None
    thought: bool = False
    inlineData: _Blob | None = None  # noqa: N815


class _Content(msgspec.Struct, frozen=True):
    parts: list[_Part] = []


class _Candidate(msgspec.Struct, frozen=True):
    index: int = 0
    content: _Content = _Content()
    finishReason: str | None = None  # noqa: N815


class _Count(msgspec.Struct, frozen=True):
    modality: str = ""
    tokenCount: int = 0  # noqa: N815


class _Counts(msgspec.Struct, frozen=True):
    promptTokenCount: int | None = None  # noqa: N815
    toolUsePromptTokenCount: int = 0  # noqa: N815
    cachedContentTokenCount: int | None = None  # noqa: N815
    candidatesTokenCount: int | None = None  # noqa: N815
    thoughtsTokenCount: int | None = None  # noqa: N815
    promptTokensDetails: list[_Count] = []  # noqa: N815
    candidatesTokensDetails: list[_Count] = []  # noqa: N815


class _Feedback(msgspec.Struct, frozen=True):
    blockReason: str | None = None  # noqa: N815


class _Answer(msgspec.Struct, frozen=True):
    candidates: list[_Candidate] = []
    usageMetadata: _Counts | None = None  # noqa: N815
    modelVersion: str | None = None  # noqa: N815
    promptFeedback: _Feedback | None = None  # noqa: N815
    error: media.Failure | None = None


READER = GenerateContent("")
_heads = msgspec.json.Decoder(_Head)
_asked = msgspec.json.Decoder(_Asked)
_answers = msgspec.json.Decoder(list[_Answer] | _Answer)


def _reading(pieces: list[_Answer]) -> Reading:
    texts: dict[int, list[str]] = {}
    counts, reason, model, failure, images = _Counts(), None, None, None, 0
    for piece in pieces:
        counts, model = piece.usageMetadata or counts, piece.modelVersion or model
        failure = piece.error.message if piece.error else failure
        reason = (piece.promptFeedback and piece.promptFeedback.blockReason) or reason
        for candidate in piece.candidates:
            reason = candidate.finishReason or reason
            said = texts.setdefault(candidate.index, [])
            said += [part.text for part in candidate.content.parts if part.text and not part.thought]
            images += sum(part.inlineData is not None for part in candidate.content.parts if not part.thought)
    return Reading(
        texts=["".join(texts[index]) for index in sorted(texts)],
        finish_reason=reason,
        usage=_usage(counts, images),
        model=model,
        error=failure,
        complete=reason is not None and failure is None,
    )


def _usage(counts: _Counts, images: int) -> Usage:
    said, thought = counts.candidatesTokenCount, counts.thoughtsTokenCount
    units = {
        "images": images,
        "input_image_tokens": _of(counts.promptTokensDetails, "IMAGE"),
        "output_image_tokens": _of(counts.candidatesTokensDetails, "IMAGE"),
    }
    given = counts.promptTokenCount
    return Usage(
        input_tokens=None if given is None else given + counts.toolUsePromptTokenCount,
        output_tokens=None if said is None and thought is None else (said or 0) + (thought or 0),
        cached_tokens=counts.cachedContentTokenCount,
        reasoning_tokens=thought,
        input_audio_tokens=_of(counts.promptTokensDetails, "AUDIO") or None,
        output_audio_tokens=_of(counts.candidatesTokensDetails, "AUDIO") or None,
        units={name: value for name, value in units.items() if value},
    )


def _of(counts: list[_Count], modality: str) -> int:
    return sum(count.tokenCount for count in counts if count.modality == modality)
