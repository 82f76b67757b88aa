"""Administration over HTTP: the operations of ``doorstep keys``, for callers whose role is ``admin``."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from doorstep.errors import BadInput, DoorstepError, NotFound, UsageError
from doorstep.gateway import audit
from doorstep.gateway.audit import Journal
from doorstep.gateway.door import NO_KEY
from doorstep.gateway.keys import Keys, Role, read_terms
from doorstep.store import Store

BODY_BYTES = 64_000
LOG_ENTRIES = 1_000
NOT_ADMIN = "this needs a key of the role admin: doorstep keys create --role admin makes one"


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a key is to be rotated: seconds in which the secret before still counts."""

    grace_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 3_600.0


Operation = Callable[[Keys, str, bytes], Any]


class Administration:
    """The addresses under ``/admin``. ``keys`` are those that the server lets callers in by."""

    def __init__(self, keys: Keys, data: Path, store: Store) -> None:
        self._keys = keys
        self._data = data
        self._store = store

    def routes(self) -> list[Route]:
        """Return the routes to put at the root."""
        return [
            self._route("GET", "/admin/keys", self._list),
            self._route("POST", "/admin/keys", self._create),
            self._route("PATCH", "/admin/keys/{key_id}", self._change),
            self._route("DELETE", "/admin/keys/{key_id}", self._revoke),
            self._route("POST", "/admin/keys/{key_id}/rotate", self._rotate),
            self._route("GET", "/admin/log", self._log),
        ]

    def _list(self, keys: Keys, _key_id: str, _body: bytes) -> Any:
        return {"keys": audit.shown(keys.all(), self._store)}

    def _create(self, keys: Keys, _key_id: str, body: bytes) -> Any:
        key, secret = keys.create(read_terms(_object(body)))
        return {**audit.shown([key], self._store)[0], "key": secret}

    def _change(self, keys: Keys, key_id: str, body: bytes) -> Any:
        return audit.shown([keys.change(key_id, _object(body))], self._store)[0]

    def _revoke(self, keys: Keys, key_id: str, _body: bytes) -> Any:
        keys.revoke(key_id)
        return {"id": key_id, "revoked": True}

    def _rotate(self, keys: Keys, key_id: str, body: bytes) -> Any:
        rotation = msgspec.convert(_object(body or b"{}"), Rotation)
        _, secret = keys.rotate(key_id, rotation.grace_s)
        return {"id": key_id, "key": secret, "grace_s": rotation.grace_s}

    def _log(self, _keys: Keys, _key_id: str, _body: bytes) -> Any:
        return {"entries": audit.entries(self._store, LOG_ENTRIES)}

    def _route(self, method: str, path: str, operation: Operation) -> Route:
        async def answer(request: Request) -> Response:
            caller = self._keys.who(dict(request.headers.raw))
            if caller is None:
                return _error(401, NO_KEY)
            if caller.role is not Role.ADMIN:
                return _error(403, NOT_ADMIN)
            keys = Keys(self._data, note=Journal(self._store, caller.key_id or audit.LOCAL).note)
            try:
                body = await _body(request)
                result = await asyncio.to_thread(operation, keys, request.path_params.get("key_id", ""), body)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except (DoorstepError, msgspec.ValidationError) as error:
                return _error(_status(error), str(error))
            self._keys.all()  # what has changed counts from now on
            return Response(msgspec.json.encode(result), media_type="application/json")

        return Route(path, answer, methods=[method])


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            raise BadInput("body", f"it is larger than {BODY_BYTES // 1000} KB")
    return body


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput("body", f"give one JSON object ({error})") from None


def _status(error: Exception) -> int:
    match error:
        case NotFound():
            return 404
        case UsageError() | msgspec.ValidationError():
            return 400
        case _:
            return 503


def _error(status: int, message: str) -> Response:
    return Response(msgspec.json.encode({"error": {"message": message}}), status, media_type="application/json")
