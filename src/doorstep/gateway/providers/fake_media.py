"""The fake provider's answers at the addresses that are no chat: small, valid, and the same for the same request."""

import base64
import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.providers.base import EVENT_STREAM, JSON, Ask

PNG, WAV = "image/png", "audio/wav"
NDJSON = "application/x-ndjson"
DIMENSIONS = 8
RATE = 8000  # samples a second
Made = tuple[str, list[bytes]]  # content type and pieces


def answer(ask: Ask) -> Made:
    """Return the answer to a request in a dialect that is no chat."""
    make = _MAKERS.get(ask.dialect.NAME)
    if make is None:
        raise BadInput("path", f"the fake provider does not speak {ask.dialect.NAME}")
    return make(ask)


def picture(seed: bytes) -> bytes:
    """Return a PNG of 8 by 8 pixels in one colour."""
    row = b"\x00" + hashlib.sha256(seed).digest()[:3] * 8
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def sound(seed: bytes) -> bytes:
    """Return a WAV of a tenth of a second: one tone, as a square wave."""
    half = 8 + seed[-1] % 8 if seed else 8
    samples = b"".join(struct.pack("<h", 8000 if place // half % 2 else -8000) for place in range(RATE // 10))
    form = struct.pack("<IHHIIHH", 16, 1, 1, RATE, RATE * 2, 2, 16)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _embeddings(ask: Ask) -> Made:
    asked = msgspec.json.decode(ask.body)
    texts = [message["content"] for message in ask.dialect.messages(ask.body)]
    dimensions = min(asked.get("dimensions") or DIMENSIONS, 4096)
    found = []
    for index, text in enumerate(texts):
        drawn = hashlib.shake_256(msgspec.json.encode(text)).digest(2 * dimensions)
        vector = [value / 32768 for value in struct.unpack(f"<{dimensions}h", drawn)]
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        value = packed if asked.get("encoding_format") == "base64" else vector
        found.append({"object": "embedding", "index": index, "embedding": value})
    words = sum(_words(text) for text in texts)
    usage = {"prompt_tokens": words, "total_tokens": words}
    return JSON, [msgspec.json.encode({"object": "list", "data": found, "model": ask.model, "usage": usage})]


def _count(ask: Ask) -> Made:
    words = sum(_words(message.get("content")) for message in ask.dialect.messages(ask.body))
    return JSON, [msgspec.json.encode({"input_tokens": words})]


def _images(ask: Ask) -> Made:
    number = int(ask.head.units.get("images", 1))
    data = [base64.b64encode(picture(ask.body + bytes([index]))).decode() for index in range(number)]
    usage = {"input_tokens": 1, "output_tokens": number, "total_tokens": 1 + number}
    if ask.head.stream:
        kind = "image_edit" if ask.dialect.NAME.endswith("edits") else "image_generation"
        partial = {"type": f"{kind}.partial_image", "b64_json": data[0], "partial_image_index": 0}
        return EVENT_STREAM, [
            _event(partial),
            *(_event({"type": f"{kind}.completed", "b64_json": one, "usage": usage}) for one in data),
        ]
    body = {"created": 0, "data": [{"b64_json": one} for one in data], "output_format": "png", "usage": usage}
    return JSON, [msgspec.json.encode(body)]


def _speech(ask: Ask) -> Made:
    made = sound(ask.body)
    if not ask.head.stream:
        return WAV, [made]
    words = int(ask.head.units.get("characters", 0))
    usage = {"input_tokens": words, "output_tokens": words, "total_tokens": 2 * words}
    delta = {"type": "speech.audio.delta", "audio": base64.b64encode(made).decode()}
    return EVENT_STREAM, [_event(delta), _event({"type": "speech.audio.done", "usage": usage})]


def _transcription(ask: Ask) -> Made:
    text = "what the fake provider heard"
    usage = {"type": "tokens", "input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    if ask.head.stream:
        deltas = [{"type": "transcript.text.delta", "delta": f"{word} "} for word in text.split()]
        return EVENT_STREAM, [
            *map(_event, deltas),
            _event({"type": "transcript.text.done", "text": text, "usage": usage}),
        ]
    return JSON, [msgspec.json.encode({"text": text, "usage": usage})]


def _generation(ask: Ask) -> dict[str, Any]:
    made = sound(ask.body)
    return {
        "generation_id": f"fake_{ask.call_id}",
        "audio": base64.b64encode(made).decode(),
        "duration": 0.1,
        "file_size": len(made),
        "encoding": {"format": "wav", "sample_rate": RATE},
        "snippets": [],
    }


def _tts(ask: Ask) -> Made:
    body = {"request_id": ask.call_id, "generations": [_generation(ask)]}
    return JSON, [msgspec.json.encode(body)]


def _tts_lines(ask: Ask) -> Made:
    chunk = _generation(ask) | {
        "type": "audio",
        "audio_format": "wav",
        "chunk_index": 0,
        "is_last_chunk": True,
        "request_id": ask.call_id,
        "snippet_id": f"fake_{ask.call_id}_0",
        "text": " ".join(message["content"] for message in ask.dialect.messages(ask.body)),
    }
    return NDJSON, [msgspec.json.encode(chunk) + b"\n"]


def _sound(ask: Ask) -> Made:
    return WAV, [sound(ask.body)]


def _gemini(ask: Ask) -> Made:
    """Answer with words, and with a picture where the request wants one."""
    made = base64.b64encode(picture(ask.body)).decode()
    wanted = ask.dialect.sampling(ask.body).get("responseModalities") or []
    parts: list[dict[str, Any]] = [{"text": "as the fake provider says"}]
    if "IMAGE" in wanted:
        parts.append({"inlineData": {"mimeType": PNG, "data": made}})
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 5, "totalTokenCount": 6}
    candidate = {"index": 0, "content": {"role": "model", "parts": parts}, "finishReason": "STOP"}
    body = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": ask.model, "responseId": ask.call_id}
    if not ask.head.stream:
        return JSON, [msgspec.json.encode(body)]
    upstream_path: Callable[[str], str] = getattr(ask.dialect, "upstream_path")  # noqa: B009 - this dialect's own
    if "alt=sse" in upstream_path(ask.model):
        return EVENT_STREAM, [_event(body)]
    return JSON, [b"[" + msgspec.json.encode(body) + b"]"]


def _completion(ask: Ask) -> Made:
    """Go on with the last prompt by saying it again."""
    said = "".join(str(message["content"]) for message in ask.dialect.messages(ask.body)[-1:])
    usage = {"prompt_tokens": _words(said), "completion_tokens": _words(said), "total_tokens": 2 * _words(said)}
    choice = {"index": 0, "text": said, "logprobs": None, "finish_reason": "stop"}
    about = {"id": ask.call_id, "object": "text_completion", "created": 0, "model": ask.model}
    body = about | {"choices": [choice], "usage": usage}
    return (
        (EVENT_STREAM, [_event(body), b"data: [DONE]\n\n"]) if ask.head.stream else (JSON, [msgspec.json.encode(body)])
    )


_MAKERS: dict[str, Callable[[Ask], Made]] = {
    "openai.completions": _completion,
    "openai.embeddings": _embeddings,
    "anthropic.count_tokens": _count,
    "openai.images": _images,
    "openai.image_edits": _images,
    "openai.speech": _speech,
    "openai.transcription": _transcription,
    "openai.translation": _transcription,
    "hume.tts": _tts,
    "hume.tts_file": _sound,
    "hume.tts_stream_json": _tts_lines,
    "hume.tts_stream_file": _sound,
    "google.generate_content": _gemini,
}


def _event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _words(content: Any) -> int:
    return len(str(content).split())
