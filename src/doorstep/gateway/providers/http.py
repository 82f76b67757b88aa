"""A service over HTTP: bodies and streams pass through byte for byte, only the model's name is rewritten.

What differs between services is whose API they have, their ``kind``: which dialects they take as they are, where those
are under the base address, and how a key is sent. What fails before the first byte is an error for the client to read;
what fails later breaks the answer off. The connections belong to the server.
"""

import os
from collections.abc import Mapping
from functools import lru_cache

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

NAME_BYTES = 100  # of a header that passes: what passes is remembered
_JSON_TYPE = (b"content-type", JSON.encode())
_UNPACKED = (b"accept-encoding", b"identity")
_OPENAI = "openai."
_COMPATIBLE = (
    "openai.chat", "openai.completions", "openai.embeddings", "openai.images", "openai.image_edits", "openai.speech",
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
        self.keys = tuple(keys_found(settings, environment))
        self._kind = KINDS[settings.kind]
        self._speaks = self._kind.speaks if settings.speaks is None else tuple(settings.speaks)
        self._base = settings.base_url.rstrip("/") + "/"
        self._settings = settings
        self._client = client
        self._urls: dict[str, str] = {}  # by dialect
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
        self._check(response)
        grows = ask.head.stream or not content_type.startswith(JSON)
        answer: bytes | Stream = response
        if not (response.is_stream and grows and response.status < 400):
            answer = await response.read()
            if response.status >= 400:
                answer = self._without_keys(answer)
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
        if dialect.NAME in self._urls:
            return self._urls[dialect.NAME]
        under = self._kind.openai_under if dialect.NAME.startswith(_OPENAI) else ""
        upstream_path = getattr(dialect, "upstream_path", None)  # for a path with the model in it
        if upstream_path is not None:
            return self._under(under, upstream_path(ask.model))
        url = self._urls[dialect.NAME] = self._under(under, dialect.PATH)
        return url

    def _under(self, under: str, path: str) -> str:
        return f"{self._base}{under}{path.split('/', 2)[2]}"

    def _headers(self, ask: Ask) -> list[tuple[bytes, bytes]]:
        family = ask.dialect.NAME.partition(".")[0]
        given = ask.headers
        headers = [item for item in given.items() if len(item[0]) <= NAME_BYTES and _passes(family, item[0])]
        kind = given.get(b"content-type", b"")
        headers.append(_JSON_TYPE if not kind.startswith(_FORM) else (b"content-type", kind))
        headers.append(_UNPACKED)
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

    def _check(self, response: Response) -> None:
        """Refuse what no client could make anything of."""
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            response.abort()
            raise ProviderError(f"{self.name} answered in {encoding}, which it was asked not to", retryable=False)
        if 300 <= response.status < 400 or response.status > 599:
            response.abort()
            to = response.headers.get("location", "another address")
            raise ProviderError(f"{self.name} answered {response.status}, {to}: look at its base_url", retryable=False)

    def _without_keys(self, said: bytes) -> bytes:
        """Return the words of a refusal without our keys, which some services repeat."""
        for key in self.keys:
            said = said.replace(key.secret.encode(), b"***")
        return said


def keys_found(settings: ProviderSettings, environment: Mapping[str, str]) -> list[Key]:
    """Return a provider's keys that the environment holds; ``UsageError`` for one that cannot be a key."""
    found = []
    for label in settings.key_names:
        secret = environment.get(label, "").strip()
        if not (secret.isascii() and secret.isprintable()):
            raise UsageError(f"{label} holds characters that no key has; set it anew")
        if secret:
            found.append(Key(label, secret))
    return found


@lru_cache(maxsize=1024)
def _passes(family: str, name: bytes) -> bool:
    """Tell whether a client's header of this name goes on to a service that is asked in this family of dialects."""
    return name.startswith((*_TO_UPSTREAM, f"{family}-".encode()))
