"""A service over HTTP as the video drivers ask it: JSON in and out, files piece by piece, failures in words."""

from collections.abc import AsyncIterator
from functools import cache
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec

from doorstep.errors import BadInput, ProviderError
from doorstep.gateway import addresses
from doorstep.gateway.dialects import wire
from doorstep.http_client import Client, Headers, Response

JSON = b"application/json"
REDIRECTS = 3
FIRST_BYTE_S = 60.0
DOWNLOAD_S = 600.0

T = TypeVar("T", bound=msgspec.Struct)


class Upstream:
    """One service. ``base_url`` ends without a stroke; ``key`` is the header that it knows us by."""

    def __init__(self, name: str, client: Client, base_url: str, key: Headers = ()) -> None:
        self.name = name
        self._client = client
        self._base = base_url.rstrip("/")
        self._key = key

    async def ask(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: bytes = b"",
        *,
        content_type: bytes = JSON,
        headers: Headers = (),
    ) -> T:
        """Send a request; return its answer as ``kind``."""
        sent = [*self._key, *headers, (b"accept-encoding", b"identity")]
        if body:
            sent.append((b"content-type", content_type))
        response = await self._client.request(
            method, self._base + path, sent, body, first_byte_s=FIRST_BYTE_S, name=self.name
        )
        answer = await self._read(response)
        decoder: msgspec.json.Decoder[T] = _decoder(kind)
        try:
            return decoder.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProviderError(f"{self.name} gave an answer that is not understood: {error}") from None

    async def pieces(self, url: str) -> AsyncIterator[bytes]:
        """Yield a file: a path of the service or a whole address. The key goes to the service's own host only."""
        url = url if "://" in url else self._base + url
        for _ in range(REDIRECTS + 1):
            own = urlsplit(url)[:2] == urlsplit(self._base)[:2]
            sent = [*(self._key if own else ()), (b"accept-encoding", b"identity")]
            address = None if own else await self._address(url)
            response = await self._client.request(
                "GET", url, sent, first_byte_s=FIRST_BYTE_S, total_s=DOWNLOAD_S, name=self.name, address=address
            )
            if response.status in (301, 302, 303, 307, 308):
                await response.close()
                url = urljoin(url, response.headers.get("location", ""))
                continue
            if response.status >= 400:
                await self._read(response)
            try:
                while piece := await response.next():
                    yield piece
            finally:
                await response.close()
            return
        raise ProviderError(f"{self.name} sends a download round in circles")

    async def _address(self, url: str) -> str:
        """Return where to connect for an address that the service sends us to: into our network only from there."""
        try:
            try:
                await addresses.check(self._base)
            except BadInput:
                return (await addresses.check(url, allow_private=True)).address
            return (await addresses.check(url)).address
        except BadInput as error:
            raise ProviderError(f"{self.name} sends a download where none may go: {error}", retryable=False) from None

    async def _read(self, response: Response) -> bytes:
        """Return the body of a good answer; ``ProviderError`` with what it says of a bad one."""
        answer = await response.read()
        if response.status < 400:
            return answer
        passing = response.status in (408, 409, 425, 429) or response.status >= 500
        raise ProviderError(
            f"{self.name} answered {response.status}: {self._without_key(answer) or '(nothing more)'}",
            status=response.status,
            retryable=passing,
        )

    def _without_key(self, answer: bytes) -> str:
        """Return what an error says; a service that repeats our key tells it to nobody through us."""
        for _, value in self._key:
            answer = answer.replace(value.removeprefix(b"Bearer "), b"***")
        return wire.error_words(answer)


@cache
def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind)
