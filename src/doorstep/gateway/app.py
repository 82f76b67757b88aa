"""The gateway's addresses: ``/v1/…`` and the run-scoped ``/runs/{run_id}/v1/…``."""

import asyncio
import re

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from doorstep.errors import BadInput, UsageError
from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.dialects.base import Dialect
from doorstep.gateway.exchange import Exchange
from doorstep.gateway.keys import Keys
from doorstep.gateway.metrics import Metrics
from doorstep.gateway.models import Models
from doorstep.gateway.recorder import Recorder

BODY_BYTES = 10_000_000
NO_KEY = "no valid key: send one as 'Authorization: Bearer …'; doorstep keys create makes one"
RUN_HEADER = "x-doorstep-run-id"
_RUN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


class Gateway:
    """What every address of the gateway works with."""

    def __init__(self, models: Models, recorder: Recorder, keys: Keys) -> None:
        self.models = models
        self.recorder = recorder
        self.keys = keys
        self.metrics = Metrics()


def routes(gateway: Gateway) -> list[Route]:
    """Return the routes to put at the root."""
    found = []
    for scope in ("", "/runs/{run_id}"):
        found += [
            Route(f"{scope}/v1/chat/completions", Calls(gateway, openai_chat), methods=["POST"]),
            Route(f"{scope}/v1/models", Listing(gateway), methods=["GET"]),
            Route(f"{scope}/v1/{{path:path}}", Unknown()),
        ]
    return found


class Calls:
    """Model calls in one dialect."""

    def __init__(self, gateway: Gateway, dialect: Dialect) -> None:
        self._gateway = gateway
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call; a client that goes away ends it."""
        request = Request(scope, receive)
        try:
            if not self._gateway.keys.allow(request.headers):
                await self._error(401, NO_KEY)(scope, receive, send)
                return
            body, run_id = await _body(request), _run_id(request)
        except UsageError as error:
            status = 413 if isinstance(error, TooLarge) else 400
            await self._error(status, str(error))(scope, receive, send)
            return
        except ClientDisconnect:
            return
        exchange = Exchange(
            models=self._gateway.models,
            recorder=self._gateway.recorder,
            metrics=self._gateway.metrics,
            dialect=self._dialect,
            body=body,
            run_id=run_id,
            send=send,
        )
        await _while_connected(exchange, receive)

    def _error(self, status: int, message: str) -> Response:
        return Response(self._dialect.error(status, message), status, media_type="application/json")


class Listing:
    """``GET /v1/models``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """List the models."""
        if not self._gateway.keys.allow(Request(scope).headers):
            body, status = openai_chat.error(401, NO_KEY), 401
        else:
            body, status = msgspec.json.encode({"object": "list", "data": self._gateway.models.listing()}), 200
        await Response(body, status, media_type="application/json")(scope, receive, send)


class Unknown:
    """Any other address under ``/v1``."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say what there is."""
        message = f"{scope['method']} {scope['path']} is not served; POST /v1/chat/completions and GET /v1/models are."
        await Response(openai_chat.error(404, message), 404, media_type="application/json")(scope, receive, send)


class TooLarge(UsageError):
    """A body over the limit."""


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


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > BODY_BYTES:
            raise TooLarge(f"the request is larger than {BODY_BYTES // 1_000_000} MB")
        parts.append(part)
    return b"".join(parts)


def _run_id(request: Request) -> str | None:
    run_id: str | None = request.path_params.get("run_id") or request.headers.get(RUN_HEADER)
    if run_id is not None and _RUN_ID.fullmatch(run_id) is None:
        raise BadInput("run id", f"{run_id[:140]!r} is none: use 1 to 128 letters, digits and . _ : -")
    return run_id
