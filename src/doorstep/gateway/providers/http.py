"""A service over HTTP: bodies and streams pass through byte for byte, only the model's name is rewritten.

What differs between services is whose API they have, their ``kind``: which dialects they take as they are, where those
are under the base address, and how a key is sent. What fails before the first byte is an error for the client to read;
what fails later breaks the answer off. The connections belong to the server.
"""

import os
from collections.abc import Mapping

import msgspec

from doorstep.config import ProviderKind, ProviderSettings
from doorstep.errors import BadInput, ProviderError, UsageError
from doorstep.gateway.chat import Seen
from doorstep.gateway.dialects import table
from doorstep.gateway.dialects.base import ChatDialect, Dialect
from doorstep.gateway.providers.base import JSON, Answer, Ask, Key, Provider, Stream
from doorstep.gateway.providers.translate import Translated
from doorstep.gateway.providers.unasked import WithoutUsage, asking_for_usage, is_unasked
from doorstep.http_client import Client, Response

ANTHROPIC_VERSION = b"2023-06-01"

# Beginnings of the names of headers that pass. A client's ``openai-…`` and ``anthropic-…`` pass to their own dialects.
_TO_UPSTREAM = (b"user-agent", b"idempotency-key", b"http-referer", b"x-title")
_TO_CLIENT = ("retry-after", "x-request-id", "request-id", "openai-", "anthropic-", "x-ratelimit-", "x-should-retry")

_OPENAI = "openai."
_COMPATIBLE = (
    "openai.chat", "openai.embeddings", "openai.images", "openai.image_edits", "openai.speech",
    "openai.transcription", "openai.translation",
)  # fmt: skip
_FORM = b"multipart/form-data"


class Kind(msgspec.Struct, frozen=True):
    """Whose API a service has. ``speaks``: beginnings of dialects' names; ``chat``: the one that chats are put into."""

    speaks: tuple[str, ...]
    chat: str | None = None
    key_header: bytes = b""  # for what is not OpenAI's format; none: as OpenAI has it
    openai_under: str = ""  # where OpenAI's format is, when it is not the service's own


KINDS: Mapping[ProviderKind, Kind] = {
    "openai": Kind(("openai.",), "openai.chat"),
    "compatible": Kind(_COMPATIBLE, "openai.chat"),
    "anthropic": Kind(("anthropic.",), "anthropic.messages", b"x-api-key"),
    "google": Kind(("google.", "openai.chat", "openai.embeddings"), "openai.chat", b"x-goog-api-key", "openai/"),
    "hume": Kind(("hume.",), None, b"x-hume-api-key"),
}


def http_provider(
    name: str, settings: ProviderSettings, client: Client, environment: Mapping[str, str] = os.environ
) -> Provider:
    """Return a service as a provider of every dialect of chat that it speaks or that can be translated for it."""
    provider = HttpProvider(name, settings, client, environment)
    return Translated(provider, provider.chat) if provider.chat else provider


class HttpProvider:
    """One service by its settings, with the keys that ``environment`` holds for it."""

    def __init__(
        self, name: str, settings: ProviderSettings, client: Client, environment: Mapping[str, str] = os.environ
    ) -> None:
        self.name = name
        self.keys = tuple(_keys(settings, environment))
        self._kind = KINDS[settings.kind]
        self._speaks = self._kind.speaks if settings.speaks is None else tuple(settings.speaks)
        self._base = settings.base_url.rstrip("/") + "/"
        self._settings = settings
        self._client = client
        self.chat = self._chat()

    def speaks(self, dialect: str) -> bool:
        """Tell whether it takes a dialect as it is."""
        return dialect.startswith(self._speaks)

    async def answer(self, ask: Ask) -> Answer:
        """Send the call on; return when the service has begun to answer, or answered."""
        dialect = ask.dialect
        if not self.speaks(dialect.NAME):
            raise BadInput("model", f"{self.name} does not serve {dialect.NAME}; ask another provider for it")
        body = dialect.with_model(ask.body, ask.model)  # also when it is the same: it may be there twice
        seen = Seen() if self._settings.stream_usage and is_unasked(dialect.NAME, ask.head) else None
        if seen is not None:
            body = asking_for_usage(body)
        response = await self._client.request(
            "POST",
            self._url(ask),
            self._headers(ask),
            body,
            first_byte_s=self._settings.first_byte_s,
            idle_s=self._settings.idle_s,
            total_s=self._settings.total_s,
            name=self.name,
        )
        headers = response.headers
        content_type = headers.get("content-type", JSON)
        self._check_encoding(response)
        grows = ask.head.stream or not content_type.startswith(JSON)
        answer: bytes | Stream = response
        if not (response.is_stream and grows and response.status < 400):
            answer = await response.read()
        elif seen is not None:
            answer = WithoutUsage(response, seen)
        return Answer(
            body=answer,
            seen=seen,
            status=response.status,
            content_type=content_type,
            headers={name: value for name, value in headers.items() if name.startswith(_TO_CLIENT)},
            upstream_id=headers.get("x-request-id") or headers.get("request-id"),
        )

    async def close(self) -> None:
        """The connections belong to the server."""

    def _chat(self) -> ChatDialect | None:
        """Return the dialect that chats in other dialects are put into: its kind's own, if it speaks that."""
        for name in (self._kind.chat or "", *self._speaks):
            dialect = table.DIALECTS.get(name)
            if self.speaks(name) and isinstance(dialect, ChatDialect):
                return dialect
        return None

    def _url(self, ask: Ask) -> str:
        """Return where to ask: the dialect's own path, less its version, which is in the base address."""
        dialect: Dialect = ask.dialect
        upstream_path = getattr(dialect, "upstream_path", None)  # for a path with the model in it
        path: str = upstream_path(ask.model) if upstream_path else dialect.PATH
        under = self._kind.openai_under if dialect.NAME.startswith(_OPENAI) else ""
        return f"{self._base}{under}{path.split('/', 2)[2]}"

    def _headers(self, ask: Ask) -> list[tuple[bytes, bytes]]:
        family = ask.dialect.NAME.partition(".")[0]
        passing = (*_TO_UPSTREAM, f"{family}-".encode())
        given = ask.headers
        headers = [item for item in given.items() if item[0].startswith(passing)]
        kind = given.get(b"content-type", b"")
        headers.append((b"content-type", kind if kind.startswith(_FORM) else JSON.encode()))
        headers.append((b"accept-encoding", b"identity"))
        if family == "anthropic" and b"anthropic-version" not in given:
            headers.append((b"anthropic-version", ANTHROPIC_VERSION))
        key = ask.key or (self.keys[0] if self.keys else None)
        if key is not None:
            headers.append(self._key_header(family, key.secret.encode()))
        return headers

    def _key_header(self, family: str, secret: bytes) -> tuple[bytes, bytes]:
        if self._kind.key_header and family != "openai":
            return self._kind.key_header, secret
        return b"authorization", b"Bearer " + secret

    def _check_encoding(self, response: Response) -> None:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            response.abort()
            raise ProviderError(f"{self.name} answered in {encoding}, which it was asked not to", retryable=False)


def _keys(settings: ProviderSettings, environment: Mapping[str, str]) -> list[Key]:
    found = []
    for label in settings.key_names:
        secret = environment.get(label, "").strip()
        if not (secret.isascii() and secret.isprintable()):
            raise UsageError(f"{label} holds characters that no key has; set it anew")
        if secret:
            found.append(Key(label, secret))
    return found
