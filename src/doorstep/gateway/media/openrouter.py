"""Videos from OpenRouter's ``/api/v1/videos``, which has a format of its own."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from doorstep.gateway.media.drivers import Order, Progress, Variant, no_remix, only_video, whole_seconds
from doorstep.gateway.media.upstream import Upstream


class OpenRouterVideos:
    """Has videos made by OpenRouter."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def check(self, order: Order) -> None:
        """Refuse a remix and parts of seconds."""
        no_remix(order, self._upstream.name)
        whole_seconds(order)

    async def submit(self, order: Order) -> str:
        """Order a video; a picture is its first frame."""
        asked: dict[str, Any] = {
            "model": order.model,
            "prompt": order.asked.prompt,
            "duration": whole_seconds(order),
            "size": order.asked.size,
            **order.asked.rest,
        }
        if url := _picture(order):
            asked["frame_images"] = [
                {"type": "image_url", "image_url": {"url": url}, "frame_type": "first_frame"},
            ]
        return (await self._upstream.ask(_Video, "POST", "/videos", msgspec.json.encode(asked))).id

    async def poll(self, upstream_id: str) -> Progress:
        """Ask how far it is; it is told in words only."""
        video = await self._upstream.ask(_Video, "GET", f"/videos/{upstream_id}")
        match video.status:
            case "completed":
                return Progress(status="completed", percent=100)
            case "failed" | "cancelled" | "expired":
                return Progress(status="failed", error=video.error or f"it was {video.status}")
            case "pending" | "queued":
                return Progress(status="queued")
            case _:
                return Progress(status="in_progress")

    def download(self, upstream_id: str, variant: Variant) -> AsyncIterator[bytes]:
        """Yield the video."""
        only_video(variant, self._upstream.name)
        return self._upstream.pieces(f"/videos/{upstream_id}/content?index=0")


class _Video(msgspec.Struct, frozen=True):
    id: str
    status: str = "pending"
    error: str | None = None


def _picture(order: Order) -> str | None:
    if order.asked.picture is None:
        return order.asked.picture_url
    return f"data:{order.asked.picture.media_type};base64,{base64.b64encode(order.asked.picture.data).decode()}"
