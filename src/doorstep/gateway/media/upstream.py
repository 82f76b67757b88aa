"""A service over HTTP as the video drivers ask it: JSON in and out, files piece by piece, failures in words."""

from collections.abc import AsyncIterator
from functools import cache
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec

from doorstep.errors import ProviderError
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
            response = await self._client.request(
                "GET", url, sent, first_byte_s=FIRST_BYTE_S, total_s=DOWNLOAD_S, name=self.name
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

    async def _read(self, response: Response) -> bytes:
        """Return the body of a good answer; ``ProviderError`` with what it says of a bad one."""
        answer = await response.read()
        if response.status < 400:
            return answer
        passing = response.status in (408, 409, 425, 429) or response.status >= 500
        raise ProviderError(
            f"{self.name} answered {response.status}: {_message(answer)}", status=response.status, retryable=passing
        )


class _Words(msgspec.Struct, frozen=True):
    message: str = ""


class _Failure(msgspec.Struct, frozen=True):
    error: _Words | str = ""
    message: str = ""
    detail: msgspec.Raw = msgspec.Raw(b"")


def _message(answer: bytes) -> str:
    """Return what an error's body says, in whichever of the usual shapes."""
    try:
        found = msgspec.json.decode(answer, type=_Failure)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return answer[:500].decode("utf-8", "replace")
    said = found.error if isinstance(found.error, str) else found.error.message
    return said or found.message or bytes(found.detail).decode()[:500] or "(nothing more)"


@cache
def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind)
