"""Videos from Google's Veo, by the Gemini API's long-running operations."""

import base64
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from doorstep.errors import BadInput, ProviderError
from doorstep.gateway.media.drivers import Order, Progress, Variant, no_remix, only_video, whole_seconds
from doorstep.gateway.media.upstream import Upstream

_SIZES = {
    (1280, 720): ("16:9", "720p"),
    (720, 1280): ("9:16", "720p"),
    (1920, 1080): ("16:9", "1080p"),
    (1080, 1920): ("9:16", "1080p"),
    (3840, 2160): ("16:9", "4k"),
    (2160, 3840): ("9:16", "4k"),
}


_MODEL = re.compile(r"[A-Za-z0-9._-]+")  # it goes into an address


class VeoVideos:
    """Has videos made by Veo. Its upstream id is the name of an operation."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def check(self, order: Order) -> None:
        """Refuse a remix, addresses of pictures, and sizes that Veo has not."""
        no_remix(order, self._upstream.name)
        whole_seconds(order)
        if _MODEL.fullmatch(order.model) is None:
            raise BadInput("model", f"'{order.model[:100]}' is no name of a model of {self._upstream.name}")
        if (order.asked.width, order.asked.height) not in _SIZES:
            raise BadInput("size", f"{order.asked.size} is none of Veo's: {', '.join(f'{w}x{h}' for w, h in _SIZES)}")
        if order.asked.picture_url is not None:
            raise BadInput("input_reference", f"{self._upstream.name} takes the picture itself, not its address")

    async def submit(self, order: Order) -> str:
        """Order a video."""
        aspect, resolution = _SIZES[order.asked.width, order.asked.height]
        instance: dict[str, Any] = {"prompt": order.asked.prompt}
        if order.asked.picture is not None:
            data = base64.b64encode(order.asked.picture.data).decode()
            instance["image"] = {"bytesBase64Encoded": data, "mimeType": order.asked.picture.media_type}
        parameters = {
            "aspectRatio": aspect,
            "resolution": resolution,
            "durationSeconds": whole_seconds(order),
            **order.asked.rest,
        }
        body = msgspec.json.encode({"instances": [instance], "parameters": parameters})
        path = f"/models/{order.model}:predictLongRunning"
        return (await self._upstream.ask(_Operation, "POST", path, body)).name

    async def poll(self, upstream_id: str) -> Progress:
        """Ask how far it is; only the end is told."""
        operation = await self._operation(upstream_id)
        if not operation.done:
            return Progress(status="in_progress")
        if operation.error is not None:
            return Progress(status="failed", error=operation.error.message)
        made = operation.response.generateVideoResponse
        if not made.generatedSamples:
            why = "; ".join(made.raiMediaFilteredReasons)
            return Progress(status="failed", error=why or "Veo made no video and did not say why")
        return Progress(status="completed", percent=100)

    async def download(self, upstream_id: str, variant: Variant) -> AsyncIterator[bytes]:
        """Yield the video from where the operation says that it is."""
        only_video(variant, self._upstream.name)
        made = (await self._operation(upstream_id)).response.generateVideoResponse
        if not made.generatedSamples:
            raise ProviderError(f"{self._upstream.name} has the video no longer", status=404, retryable=False)
        async for piece in self._upstream.pieces(made.generatedSamples[0].video.uri):
            yield piece

    async def _operation(self, name: str) -> "_Operation":
        return await self._upstream.ask(_Operation, "GET", f"/{name}")


class _Error(msgspec.Struct, frozen=True):
    message: str = "it failed without a reason"


class _File(msgspec.Struct, frozen=True):
    uri: str


class _Sample(msgspec.Struct, frozen=True):
    video: _File


class _Made(msgspec.Struct, frozen=True):
    generatedSamples: list[_Sample] = []  # noqa: N815 - as on the wire
    raiMediaFilteredReasons: list[str] = []  # noqa: N815


class _Response(msgspec.Struct, frozen=True):
    generateVideoResponse: _Made = _Made()  # noqa: N815


class _Operation(msgspec.Struct, frozen=True):
    name: str = ""
    done: bool = False
    error: _Error | None = None
    response: _Response = _Response()
