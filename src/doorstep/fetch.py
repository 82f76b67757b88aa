"""One HTTP request that waits for its answer: for commands, which have no event loop. No calls of models go here."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import msgspec

from doorstep.errors import ProviderError

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # Doorstep is asked without the proxy


class Fetched(msgspec.Struct, frozen=True):
    """An answer of any status."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body's JSON; ``ValueError`` where it is none."""
        return msgspec.json.decode(self.body)


def fetch(url: str, body: Any = None, *, headers: Mapping[str, str] | None = None, timeout_s: float = 30.0) -> Fetched:
    """GET a URL, or POST a body to it as JSON. ``ProviderError`` when nobody answers."""
    data = None if body is None else msgspec.json.encode(body)
    request = urllib.request.Request(url, data, {"content-type": "application/json", **(headers or {})})
    try:
        with _direct.open(request, timeout=timeout_s) as response:
            return Fetched(response.status, response.read())
    except urllib.error.HTTPError as error:  # an answer too
        with error:
            return Fetched(error.code, error.read())
    except (OSError, http.client.HTTPException) as error:
        raise ProviderError(f"{url} cannot be reached: {error}") from None
