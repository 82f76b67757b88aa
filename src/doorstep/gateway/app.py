"""The gateway's addresses as an ASGI application: what any ASGI server can serve.

Under our own server model calls take the fast lane (``fastlane.py``) and reach this module only in tests and on
servers of other kinds; the listing of models is always here.
"""

import asyncio
from collections.abc import Sequence

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from doorstep.errors import BadInput, NotFound
from doorstep.gateway import door
from doorstep.gateway.dialects import openai_chat, table
from doorstep.gateway.exchange import Asked, Exchange, Headers
from doorstep.gateway.gateway import Gateway


def routes(gateway: Gateway) -> list[Route]:
    """Return the routes to put at the root."""
    found = []
    for scope in ("", "/runs/{run_id}"):
        for under in (scope, scope + table.HOSTED_OPENAI):
            found += [
                Route(f"{under}/v1/models", Listing(gateway), methods=["GET"]),
                Route(f"{under}/v1/models/{{model:path}}", OneModel(gateway), methods=["GET"]),
            ]
        found += [
            Route(f"{scope}/{{path:path}}", Calls(gateway), methods=["POST"]),
            Route(f"{scope}/v1/{{path:path}}", Unknown()),
        ]
    return found


class Calls:
    """Model calls, in the dialect of their address."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call; a client that goes away ends it."""
        address = door.address_of(scope["raw_path"] + b"?" + scope["query_string"])
        if address is None:
            await Unknown()(scope, receive, send)
            return
        dialect, headers = address.dialect, dict(scope["headers"])
        reply = AsgiReply(send)
        caller = self._gateway.keys.who(headers)
        if caller is None:
            await reply.whole(401, _JSON, dialect.error(401, door.NO_KEY))
            return
        try:
            run_id = door.run_of(address, headers)
            body = await _body(Request(scope, receive), door.most_bytes(dialect))
        except TooLarge as error:
            await reply.whole(413, _JSON, dialect.error(413, str(error)))
        except BadInput as error:
            await reply.whole(400, _JSON, dialect.error(400, str(error)))
        except ClientDisconnect:
            return
        else:
            asked = Asked(dialect=dialect, body=body, headers=headers, caller=caller, run_id=run_id)
            await _while_connected(Exchange(self._gateway, asked, reply), receive)


class AsgiReply:
    """An answer as ASGI messages. ASGI has no way to break a connection off but to fail before the last message."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send an answer at once."""
        await self._start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.end(body)

    async def begin(self, status: int, headers: Headers, piece: bytes) -> None:
        """Begin an answer of unknown length with its first piece."""
        await self._start(status, headers)
        await self.piece(piece)

    async def piece(self, data: bytes) -> None:
        """Send more of it."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        """Send the last of it."""
        await self._send({"type": "http.response.body", "body": data})

    def abort(self) -> None:
        """Leave the answer without its end: the server then closes the connection in the middle of it."""

    async def _start(self, status: int, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})


class Listing:
    """``GET /v1/models``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """List the models."""
        answer = _allowed(self._gateway, scope) or _json({"object": "list", "data": self._gateway.models.listing()})
        await answer(scope, receive, send)


class OneModel:
    """``GET /v1/models/{model}``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Show a model."""
        try:
            answer = _allowed(self._gateway, scope) or _json(self._gateway.models.one(scope["path_params"]["model"]))
        except NotFound as error:
            answer = _error(404, str(error), "model_not_found")
        await answer(scope, receive, send)


class Unknown:
    """Any other address under ``/v1``."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say what there is."""
        served = ", ".join(f"POST {path}" for path in table.paths())
        message = f"{scope['method']} {scope['path']} is not served; GET /v1/models, {served} are."
        await _error(404, message)(scope, receive, send)


class TooLarge(BadInput):
    """A body over the limit."""


def _allowed(gateway: Gateway, scope: Scope) -> Response | None:
    """Return the refusal for a caller without a key."""
    return None if gateway.keys.who(dict(scope["headers"])) else _error(401, door.NO_KEY)


def _error(status: int, message: str, code: str | None = None) -> Response:
    return Response(openai_chat.error(status, message, code=code), status, media_type="application/json")


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _while_connected(exchange: Exchange, receive: Receive) -> None:
    """Serve until the answer is out or the client has gone."""
    serving = asyncio.ensure_future(exchange.serve())
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not serving.done():
            serving.cancel()
        await asyncio.wait((serving, leaving))
    if not serving.cancelled():
        serving.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLarge("body", door.too_large(most))
        parts.append(part)
    return b"".join(parts)


_JSON: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),)
