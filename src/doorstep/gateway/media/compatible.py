"""Videos from whoever has OpenAI's ``/v1/videos``, such as vLLM-Omni. Orders go as forms, which all of them take."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.dialects.openai_videos import PICTURES
from doorstep.gateway.media.drivers import Order, Progress, Variant
from doorstep.gateway.media.upstream import Upstream


class CompatibleVideos:
    """Has videos made by a service with OpenAI's format."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def check(self, order: Order) -> None:
        """Refuse addresses of pictures, which few such services fetch."""
        if order.asked.picture_url is not None:
            raise BadInput("input_reference", f"{self._upstream.name} takes the picture itself, not its address")

    async def submit(self, order: Order) -> str:
        """Order a video, or a remix of one."""
        key = [(b"idempotency-key", order.job_id.encode())]
        if order.remix_of is not None:
            body = msgspec.json.encode({"prompt": order.asked.prompt})
            path = f"/videos/{order.remix_of}/remix"
            return (await self._upstream.ask(_Video, "POST", path, body, headers=key)).id
        kind, body = _form(order)
        return (await self._upstream.ask(_Video, "POST", "/videos", body, content_type=kind, headers=key)).id

    async def poll(self, upstream_id: str) -> Progress:
        """Ask how far it is."""
        video = await self._upstream.ask(_Video, "GET", f"/videos/{upstream_id}")
        return Progress(
            status=_STATUS.get(video.status, "in_progress"),
            percent=int(video.progress or 0),
            error=_why(video.error),
            seconds=_number(video.seconds),
        )

    def download(self, upstream_id: str, variant: Variant) -> AsyncIterator[bytes]:
        """Yield the video or a picture of it."""
        query = "" if variant == "video" else f"?variant={variant}"
        return self._upstream.pieces(f"/videos/{upstream_id}/content{query}")


class _Error(msgspec.Struct, frozen=True):
    message: str = ""


class _Video(msgspec.Struct, frozen=True):
    id: str
    status: str = "queued"
    progress: float | None = None
    error: _Error | str | None = None
    seconds: str | float | None = None


_STATUS: dict[str, Any] = {
    "queued": "queued",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
    "expired": "failed",
}


def _why(error: _Error | str | None) -> str | None:
    return error.message if isinstance(error, _Error) else error


def _number(value: str | float | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _form(order: Order) -> tuple[bytes, bytes]:
    """Return an order's content type and its form."""
    boundary = secrets.token_hex(16).encode()
    fields = {
        "prompt": order.asked.prompt,
        "model": order.model,
        "seconds": f"{order.asked.seconds:g}",
        "size": order.asked.size,
        **{name: value if isinstance(value, str) else _json(value) for name, value in order.asked.rest.items()},
    }
    lines: list[bytes] = []
    for name, value in fields.items():
        lines += (b"--" + boundary, b'Content-Disposition: form-data; name="%b"' % _quoted(name), b"", value.encode())
    if order.asked.picture is not None:
        kind = order.asked.picture.media_type
        file = b'Content-Disposition: form-data; name="input_reference"; filename="picture.%b"' % (
            PICTURES[kind].encode()
        )
        lines += (b"--" + boundary, file, b"Content-Type: " + kind.encode(), b"", order.asked.picture.data)
    lines += (b"--" + boundary + b"--", b"")
    return b"multipart/form-data; boundary=" + boundary, b"\r\n".join(lines)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _quoted(name: str) -> bytes:
    return name.encode().replace(b'"', b"%22").replace(b"\r", b"%0D").replace(b"\n", b"%0A")
