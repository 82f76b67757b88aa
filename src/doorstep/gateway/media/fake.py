"""A fake service of videos: nothing is made, a tiny file of the right form comes out. For trying out and for tests.

Its models are ``video``, which is done after ``duration_s``, and ``video-broken``, which fails then. All that it knows
of a video is in its id, so that it survives a restart as a service would.
"""

import struct
import time
from collections.abc import AsyncIterator, Callable

from doorstep.errors import BadInput, ProviderError
from doorstep.gateway.media.drivers import Order, Progress, Variant

GOOD, BROKEN = "video", "video-broken"


class FakeVideos:
    """Pretends to make videos. ``orders`` are those that it was given."""

    def __init__(self, duration_s: float = 2.0, clock: Callable[[], float] = time.time) -> None:
        self.orders: list[Order] = []
        self._duration_s = duration_s
        self._clock = clock

    def check(self, order: Order) -> None:
        """Refuse models that it has not."""
        if order.model not in (GOOD, BROKEN):
            raise BadInput("model", f"the fake provider makes videos as '{GOOD}' and '{BROKEN}' only")

    async def submit(self, order: Order) -> str:
        """Take an order."""
        self.orders.append(order)
        return f"{order.model}:{self._clock()}:{order.asked.seconds:g}"

    async def poll(self, upstream_id: str) -> Progress:
        """Tell how much of the time has gone."""
        model, ordered, seconds = upstream_id.split(":")
        done = min(1.0, (self._clock() - float(ordered)) / self._duration_s) if self._duration_s else 1.0
        if done < 1.0:
            return Progress(status="in_progress", percent=int(100 * done))
        if model == BROKEN:
            return Progress(status="failed", error="the fake provider fails here, as told")
        return Progress(status="completed", percent=100, seconds=float(seconds))

    async def download(self, upstream_id: str, variant: Variant) -> AsyncIterator[bytes]:
        """Yield the file, or a picture of one point."""
        if (await self.poll(upstream_id)).status != "completed":
            raise ProviderError("the fake provider has no such video", status=404, retryable=False)
        yield mp4(float(upstream_id.split(":")[2])) if variant == "video" else PIXEL


def mp4(seconds: float) -> bytes:
    """Return an MP4 file of this length without tracks: a file type, a movie header, and an empty movie."""
    rate, matrix = 1000, struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    header = struct.pack(">IIIII", 0, 0, 0, rate, int(seconds * rate)) + struct.pack(">IH10x", 0x10000, 0x0100)
    movie = _box(b"mvhd", header + matrix + bytes(24) + struct.pack(">I", 1))
    return _box(b"ftyp", b"isom" + bytes(4) + b"isommp42") + _box(b"moov", movie) + _box(b"mdat", b"")


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


# One white point as PNG.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a4944415478da63f80f00010101"
    "001cb08c990000000049454e44ae426082"
)
