"""The usage of streams whose client did not ask for it: asked of the service all the same, and kept from the client.

OpenAI's chat completions tell what a stream used only when ``stream_options`` asks for it, in a last chunk without
choices that unprepared clients stumble over. Without it nobody knows what the call cost.
"""

import msgspec

from doorstep.gateway.chat import Seen
from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.dialects.base import Head
from doorstep.gateway.providers.base import Stream

_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENDS = (b"\n\n", b"\r\n\r\n")
_NO_CHOICES = (b'"choices":[]', b'"choices": []')


def is_unasked(dialect: str, head: Head) -> bool:
    """Tell whether a call's usage is told only when it is asked for, and is not."""
    return dialect == openai_chat.NAME and head.stream and not head.usage


def asking_for_usage(body: bytes) -> bytes:
    """Return a request that asks for the usage too."""
    fields = _raw.decode(body)
    given = fields.get("stream_options")
    options = {} if given in (None, b"null") else _raw.decode(given)
    options["include_usage"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)


class WithoutUsage:
    """A stream without its chunk of usage, which is noted. A chunk that is not whole yet waits until it is."""

    def __init__(self, stream: Stream, seen: Seen) -> None:
        self._stream = stream
        self._seen = seen
        self._held = b""

    async def next(self) -> bytes:
        """Return the next whole chunks."""
        while piece := await self._stream.next():
            data = self._held + piece if self._held else piece
            at = max(data.rfind(end) + len(end) if end in data else 0 for end in _ENDS)
            whole, self._held = data[:at], data[at:]
            if any(mark in whole for mark in _NO_CHOICES):
                whole = self._filtered(whole)
            if whole:
                return whole
        rest, self._held = self._held, b""
        return rest

    async def close(self) -> None:
        """Give the stream up."""
        await self._stream.close()

    def _filtered(self, whole: bytes) -> bytes:
        end = _ENDS[1] if _ENDS[1] in whole else _ENDS[0]
        chunks = whole.split(end)
        return end.join(chunk for chunk in chunks if not self._is_usage(chunk))

    def _is_usage(self, chunk: bytes) -> bool:
        if not any(mark in chunk for mark in _NO_CHOICES):
            return False
        usage = openai_chat.understand(chunk + b"\n\n").usage
        if usage.output_tokens is None:
            return False
        self._seen.usage = usage
        return True
