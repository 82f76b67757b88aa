"""Which samples of a sampling session are ready, told in one long poll for all of them (``/retrieve_futures``).

A cursor counts on through restarts, for a client that was here before brings its last one along: it is the time in
microseconds, or one more than the cursor before.
"""

import asyncio
from collections import deque

import msgspec

from doorstep import ids

_KEPT = 65_536  # more than one client may have open, so only what nobody fetches is lost
CLONE = 1_000_000_000  # sequence ids of each copy of a sampling client begin at a multiple of this

Key = tuple[str, int]  # sampling session and copy of its client


class Completion(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sample that can be fetched; ``state`` is ``finished``, or ``failed`` when there is no sample."""

    state: str
    request_id: str
    response_payload_uncompressed_size: int | None = None


class _Feed:
    def __init__(self) -> None:
        self.events: deque[tuple[int, Completion]] = deque(maxlen=_KEPT)
        self.arrived = asyncio.Event()


def key_of(request_id: str) -> Key:
    """Return whose feed a sample's request belongs to."""
    sampler_id, _, number = request_id.rpartition(":")
    return sampler_id, int(number) // CLONE


class Feeds:
    """The feeds of all sampling sessions."""

    def __init__(self) -> None:
        self._feeds: dict[Key, _Feed] = {}
        self._cursor = 0

    def add(self, completion: Completion) -> None:
        """Tell that a sample is ready."""
        self._cursor = max(self._cursor + 1, ids.now_us())
        feed = self._feeds.setdefault(key_of(completion.request_id), _Feed())
        feed.events.append((self._cursor, completion))
        feed.arrived.set()

    async def after(self, key: Key, cursor: int, timeout_s: float) -> tuple[list[Completion], int]:
        """Return what came after a cursor, waiting for something to come, and the cursor of the last."""
        feed = self._feeds.setdefault(key, _Feed())
        while feed.events and feed.events[0][0] <= cursor:
            feed.events.popleft()
        if not feed.events:
            feed.arrived.clear()
            try:
                await asyncio.wait_for(feed.arrived.wait(), timeout_s)
            except TimeoutError:
                return [], cursor
        found = list(feed.events)
        return [completion for _, completion in found], found[-1][0] if found else cursor

    def drop(self, prefix: str) -> None:
        """Forget the feeds whose sampling session's id begins so."""
        for key in [key for key in self._feeds if key[0].startswith(prefix)]:
            del self._feeds[key]
