"""Addresses that need no key: whoever has one may fetch, until it expires or the server starts anew."""

import hashlib
import hmac
import secrets
import time
from urllib.parse import quote

from starlette.requests import Request

_SECRET = secrets.token_bytes(32)


def address(request: Request, path: str, expires_s: float) -> str:
    """Return the signed address of a path of the service that a request came to."""
    path, expires = request.scope.get("root_path", "") + quote(path), str(int(expires_s))
    root = f"{request.url.scheme}://{request.url.netloc}"
    return f"{root}{path}?expires={expires}&signature={_signature(path, expires)}"


def is_valid(request: Request) -> bool:
    """Tell whether a request came to an address that was signed here and has not expired."""
    expires, given = request.query_params.get("expires", ""), request.query_params.get("signature", "")
    if not hmac.compare_digest(_signature(quote(request.url.path), expires).encode(), given.encode()):
        return False
    return int(expires) >= time.time()


def _signature(path: str, expires: str) -> str:
    return hmac.new(_SECRET, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()
