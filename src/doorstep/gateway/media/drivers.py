"""What a video driver is: one who has videos made somewhere. One module per kind of service implements it."""

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.dialects.openai_videos import VideoRequest

Variant = Literal["video", "thumbnail", "spritesheet"]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One video to be made. ``model`` is the service's own name, ``remix_of`` its id of the video to begin from."""

    job_id: str
    model: str
    asked: VideoRequest
    remix_of: str | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a video is. ``seconds`` is its length where the service says it."""

    status: Literal["queued", "in_progress", "completed", "failed"]
    percent: int = 0
    error: str | None = None
    seconds: float | None = None


class VideoDriver(Protocol):
    """One service. What it cannot do is refused by ``check`` before anything begins; the rest fails the job.

    ``ProviderError`` with ``retryable`` means that polling may go on.
    """

    def check(self, order: Order) -> None:
        """Raise ``BadInput``, naming the field, for what this service cannot do."""
        ...

    async def submit(self, order: Order) -> str:
        """Order a video; return the service's id of it."""
        ...

    async def poll(self, upstream_id: str) -> Progress:
        """Ask how far it is."""
        ...

    def download(self, upstream_id: str, variant: Variant) -> AsyncIterator[bytes]:
        """Yield a finished video, or a picture of it, piece by piece; ``BadInput`` for a variant that is not there."""
        ...


def no_remix(order: Order, name: str) -> None:
    """Refuse a remix."""
    if order.remix_of is not None:
        raise BadInput("video_id", f"{name} cannot remix a video; order a new one")


def only_video(variant: Variant, name: str) -> None:
    """Refuse the pictures of a video."""
    if variant != "video":
        raise BadInput("variant", f"{name} gives the video only")


def whole_seconds(order: Order) -> int:
    """Return the length for a service that counts whole seconds."""
    seconds = order.asked.seconds
    if seconds != int(seconds):
        raise BadInput("seconds", "must be a whole number for this model")
    return int(seconds)
