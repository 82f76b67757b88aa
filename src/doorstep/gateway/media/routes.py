"""The addresses of video jobs: ``/v1/videos`` and what is under it, run-scoped too. Errors are in OpenAI's shape."""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from doorstep.errors import BadInput, DoorstepError, LimitReached, NotFound
from doorstep.gateway import door
from doorstep.gateway.dialects import openai_videos
from doorstep.gateway.exchange import CALL_ID, CUSTOMER, status_of
from doorstep.gateway.keys import Caller
from doorstep.gateway.media.jobs import Shown, Videos, Whose

log = logging.getLogger(__name__)

NO_CALLS = "this key may read, not order or delete; use one with the role member"

T = TypeVar("T")
Who = Callable[[Mapping[bytes, bytes]], Caller | None]


class Page(msgspec.Struct, frozen=True):
    """What part of a list is asked for."""

    after: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "desc"


class Content(msgspec.Struct, frozen=True):
    """Which file of a video is asked for."""

    variant: Literal["video", "thumbnail", "spritesheet"] = "video"


def routes(videos: Videos, who: Who) -> list[Route]:
    """Return the routes to put at the root; ``who`` says who sends a request."""
    desk = _Desk(videos, who)
    found = []
    for scope in ("", "/runs/{run_id}"):
        path = f"{scope}{openai_videos.PATH}"
        found += [
            Route(path, desk.answering(desk.create, calls=True), methods=["POST"]),
            Route(path, desk.answering(desk.page), methods=["GET"]),
            Route(f"{path}/{{video_id}}", desk.answering(desk.get), methods=["GET"]),
            Route(f"{path}/{{video_id}}", desk.answering(desk.delete, calls=True), methods=["DELETE"]),
            Route(f"{path}/{{video_id}}/content", desk.answering(desk.content), methods=["GET"]),
            Route(f"{path}/{{video_id}}/remix", desk.answering(desk.remix, calls=True), methods=["POST"]),
        ]
    return found


class _Desk:
    """Answers each kind of request."""

    def __init__(self, videos: Videos, who: Who) -> None:
        self._videos = videos
        self._who = who

    async def create(self, request: Request, caller: Caller) -> Response:
        body = await _body(request)
        return _shown(await self._videos.create(_whose(request, caller), body))

    async def remix(self, request: Request, caller: Caller) -> Response:
        body, video_id = await _body(request), request.path_params["video_id"]
        return _shown(await self._videos.remix(_whose(request, caller), video_id, body))

    async def get(self, request: Request, caller: Caller) -> Response:
        return _shown(await self._videos.get(caller, request.path_params["video_id"]))

    async def page(self, request: Request, caller: Caller) -> Response:
        asked = _query(request, Page)
        if not 1 <= asked.limit <= 100:
            raise BadInput("limit", "must be from 1 to 100")
        newest_first = asked.order == "desc"
        shown, more = await self._videos.page(caller, asked.after, asked.limit, newest_first=newest_first)
        ends = {"first_id": shown[0].id, "last_id": shown[-1].id} if shown else {"first_id": None, "last_id": None}
        page = {"object": "list", "data": shown, "has_more": more, **ends}
        return _json(msgspec.json.encode(page))

    async def content(self, request: Request, caller: Caller) -> Response:
        video_id, variant = request.path_params["video_id"], _query(request, Content).variant
        if variant == "video":
            return FileResponse(await self._videos.file(caller, video_id), media_type="video/mp4")
        picture = await self._videos.picture(caller, video_id, variant)
        return Response(picture, media_type=_picture_type(picture))

    async def delete(self, request: Request, caller: Caller) -> Response:
        video_id = request.path_params["video_id"]
        await self._videos.delete(caller, video_id)
        return _json(msgspec.json.encode({"id": video_id, "object": "video.deleted", "deleted": True}))

    def answering(
        self, answer: Callable[[Request, Caller], Awaitable[Response]], *, calls: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint: who may, the answer, and failures in OpenAI's words."""

        async def endpoint(request: Request) -> Response:
            caller = self._who(dict(request.scope["headers"]))
            if caller is None:
                return _error(401, door.NO_KEY)
            if calls and not caller.may_call:
                return _error(403, NO_CALLS)
            try:
                return await answer(request, caller)
            except ClientDisconnect:
                return Response(status_code=499)
            except DoorstepError as error:
                return _failed(error)
            except Exception as error:
                log.exception("%s %s", request.method, request.url.path)
                return _failed(error)

        return endpoint


class _TooLarge(BadInput):
    """A body over the limit."""


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > openai_videos.MOST_BYTES:
            raise _TooLarge("body", door.too_large(openai_videos.MOST_BYTES))
        parts.append(part)
    return b"".join(parts)


def _whose(request: Request, caller: Caller) -> Whose:
    headers = dict(request.scope["headers"])
    address = door.Address(openai_videos, request.path_params.get("run_id"))
    customer = headers.get(CUSTOMER)
    return Whose(
        caller=caller,
        run_id=door.run_of(address, headers),
        customer=None if customer is None else customer.decode("latin-1"),
    )


def _query(request: Request, kind: type[T]) -> T:
    try:
        return msgspec.convert(dict(request.query_params), kind, strict=False)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        raise BadInput(path.rstrip("`") or "query", text) from None


def _picture_type(picture: bytes) -> str:
    if picture.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if picture[8:12] == b"WEBP" else "image/jpeg"


def _shown(shown: Shown) -> Response:
    response = _json(openai_videos.write(shown.video))
    response.headers[CALL_ID.decode()] = shown.call_id
    return response


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _failed(error: Exception) -> Response:
    status, code = (413, None) if isinstance(error, _TooLarge) else status_of(error)
    message = str(error) if isinstance(error, DoorstepError) else "Doorstep failed at this request; see its log."
    param = error.where if isinstance(error, BadInput) else None
    response = _error(status, message, param, None if isinstance(error, NotFound) else code)
    if isinstance(error, LimitReached) and error.retry_after_s is not None:
        response.headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return response


def _error(status: int, message: str, param: str | None = None, code: str | None = None) -> Response:
    return _json(openai_videos.error(status, message, param=param, code=code), status)
