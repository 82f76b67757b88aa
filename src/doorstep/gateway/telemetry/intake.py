"""``POST /v1/traces``: the spans of other systems into the record, as OTLP's HTTP exporters send them.

A trace becomes a run when its root span comes, its model calls become calls without token ids; other spans are taken
and not kept. Ids come from those of the trace, so what is sent twice is there once.
"""

import asyncio
import zlib
from collections.abc import Mapping, Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from doorstep.errors import BadInput, DoorstepError, StoreError
from doorstep.gateway.capture import Capture
from doorstep.gateway.door import NO_KEY
from doorstep.gateway.keys import Caller, Keys
from doorstep.gateway.records import Rows, rows_of
from doorstep.gateway.telemetry import otlp, reading
from doorstep.gateway.telemetry.otlp import Span
from doorstep.store import Store
from doorstep.types import Call, Node, Run
from doorstep.value.prices import UNKNOWN

PATH = "/v1/traces"
BODY_BYTES = 64_000_000  # also of what was compressed
AGAIN_S = 5
_MEDIA_TYPES = (otlp.JSON, otlp.PROTOBUF)


class Refused(DoorstepError):
    """A request that is not taken, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def routes(store: Store, keys: Keys) -> list[Route]:
    """Return the routes to put at the root."""
    one_at_a_time = asyncio.Lock()  # what two requests both have is written by the first one

    async def traces(request: Request) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        spelling = media_type if media_type in _MEDIA_TYPES else otlp.JSON
        try:
            rejected = await _take(request, media_type)
        except Refused as error:
            retry = {"retry-after": str(AGAIN_S)} if error.status == 503 else None
            return Response(otlp.refusal(spelling, str(error)), error.status, retry, spelling)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        return Response(otlp.answer(spelling, rejected), media_type=spelling)

    async def _take(request: Request, media_type: str) -> list[str]:
        caller = keys.who(dict(request.headers.raw))
        if caller is None:
            raise Refused(401, NO_KEY)
        if not caller.may_call:
            raise Refused(403, "this key may read, not write; use one with the role member")
        if media_type not in _MEDIA_TYPES:
            raise Refused(415, f"send {' or '.join(_MEDIA_TYPES)}, not {media_type or 'nothing'}")
        body = await _body(request)
        async with one_at_a_time:
            return await asyncio.to_thread(_keep, store, caller, body, media_type)

    return [Route(PATH, traces, methods=["POST"])]


def _keep(store: Store, caller: Caller, body: bytes, media_type: str) -> list[str]:
    """Keep what a request tells of; return why some of its spans were rejected."""
    try:
        read = otlp.read_spans(body, media_type)
        add(store, read.spans, caller.key_id or None, caller.customer)
    except BadInput as error:
        raise Refused(400, str(error)) from None
    except StoreError as error:
        raise Refused(503, str(error)) from None
    return read.rejected


def add(store: Store, spans: Sequence[Span], key_id: str | None, customer: str | None) -> None:
    """Add the calls and runs that spans tell of, but for those that are there."""
    captures = [reading.capture_of(span, key_id, customer) for span in spans if _is_foreign_call(span)]
    known = store.known(Call, [one.call_id for one in captures])
    rows = [rows_of(one, lambda *_: UNKNOWN) for one in captures if one.call_id not in known]
    runs = _runs(store, spans, captures, customer)
    nodes = _new_nodes(store, rows)
    blobs = {digest: body for one in rows for digest, body in one.blobs.items()}
    store.add(*runs, *(one.call for one in rows), *nodes, blobs=blobs)


def _is_foreign_call(span: Span) -> bool:
    """Tell whether a span is a model call, and not one that Doorstep itself sent out."""
    return reading.is_call(span) and "doorstep.call_id" not in span.attributes


def _runs(store: Store, spans: Sequence[Span], captures: Sequence[Capture], customer: str | None) -> list[Run]:
    """Return the runs whose root has come, and that are about models."""
    roots = {reading.run_id_of(span): span for span in spans if span.parent_id is None}
    known = store.known(Run, list(roots))
    first: Mapping[str | None, Capture] = {
        one.run_id: one for one in sorted(captures, key=lambda one: one.started_us, reverse=True)
    }
    return [
        reading.run_of(root, first.get(run_id), customer)
        for run_id, root in roots.items()
        if run_id not in known and "doorstep.run_id" not in root.attributes
        if run_id in first or reading.is_agent(root) or store.select(Call, run_id=run_id, limit=1)
    ]


def _new_nodes(store: Store, rows: Sequence[Rows]) -> list[Node]:
    told = [one for one in rows if reading.NO_CONTENT not in one.call.gaps]
    nodes = {node.node_id: node for one in reversed(told) for node in reversed(one.nodes)}  # the first one counts
    known = store.known(Node, list(nodes))
    return [node for node_id, node in nodes.items() if node_id not in known]


async def _body(request: Request) -> bytes:
    """Read a body and unpack it; neither may be larger than the limit."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "deflate"):
        raise Refused(415, f"send the body as it is or as gzip, not as {coding[:40]}")
    unpack = None if coding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body = bytearray()
    async for part in request.stream():
        try:
            body += part if unpack is None else unpack.decompress(part, BODY_BYTES + 1 - len(body))
        except zlib.error as error:
            raise Refused(400, f"the body is not {coding} ({error})") from None
        if len(body) > BODY_BYTES:
            raise Refused(413, f"the request is larger than {BODY_BYTES // 1_000_000} MB; send fewer spans at once")
    if unpack is not None and not unpack.eof:
        raise Refused(400, f"the body is not all of its {coding}")
    return bytes(body)
