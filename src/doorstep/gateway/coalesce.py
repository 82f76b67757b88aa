"""Retries of clients: the same call sent again joins the first one, and both are one call in the record.

The SDKs send a call again when its connection fails or takes too long, and say so: ``x-stainless-retry-count`` counts
the tries, and an ``idempotency-key`` stays the same. The rule:

- A call is a retry when its count is above 0, or when its idempotency key was sent before; with the same body, by the
  same key, in the same run and at the same address. Never across keys.
- While the first is being answered, a retry is given the same answer from its beginning. So it is for a while after
  the first was answered well (``KEPT_S``, in at most ``KEPT_BYTES`` for all), since a client may have lost the answer.
- A retry of a call that failed is a call of its own, and its record names the first in ``retry_of``. A first call is
  given up when its own client has gone; who had joined it begins anew, or is broken off in the middle of an answer.
- Two equal calls at once without an idempotency key cannot be told apart, so a retry of either joins neither: whoever
  samples one prompt many times gets as many answers.
- Answers above ``ANSWER_BYTES`` are not held for retries.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from doorstep.errors import ProviderError
from doorstep.gateway.providers.base import Answer

COUNT = b"x-stainless-retry-count"
IDEMPOTENCY = b"idempotency-key"
KEPT_S = 30.0
KEPT_BYTES = 8_000_000
ANSWER_BYTES = 1_000_000
_TAIL = 256  # bytes of a body that tell calls apart at first sight

_Slot = tuple[object, ...]


class FirstFailed(Exception):
    """The call that a retry had joined came to nothing before its first byte: the retry is on its own."""


class Flight:
    """A call that retries may join: while it is answered, and for a while after.

    Whoever makes the call tells it what goes out, ``end`` when that was all of a good answer, and ``fail`` in any case.
    """

    def __init__(self, call_id: str, body: bytes, landed: "Callable[[Flight], None]") -> None:
        self.call_id = call_id
        self.body = body
        self.size = len(body)
        self.alone = True  # no equal call was there at the same time
        self.ended = False
        self.failed = False
        self._landed = landed
        self._answer: Answer | None = None
        self._pieces: list[bytes] = []
        self._changed: asyncio.Event | None = None

    def begin(self, answer: Answer) -> None:
        """The first has an answer; of its body nothing is here yet."""
        self._answer = answer
        self._tell()

    def add(self, piece: bytes) -> None:
        """A piece of the answer went out."""
        if self.failed:
            return
        self.size += len(piece)
        if self.size - len(self.body) > ANSWER_BYTES:
            self.fail()
            return
        self._pieces.append(piece)
        self._tell()

    def end(self) -> None:
        """All of the answer went out."""
        if not self.ended:
            self.ended = True
            self._landed(self)
            self._tell()

    def fail(self) -> None:
        """The call failed, or cannot be joined any more. After its end this does nothing."""
        if not self.ended:
            self.ended = self.failed = True
            self.size -= sum(map(len, self._pieces))
            self._pieces = []
            self._landed(self)
            self._tell()

    async def answer(self) -> Answer:
        """Return the first call's answer for another client, as soon as it begins."""
        while self._answer is None and not self.failed:
            await self._change()
        if self._answer is None or self.failed:
            raise FirstFailed
        return msgspec.structs.replace(self._answer, body=_Same(self))

    async def piece(self, number: int) -> tuple[bytes, int]:
        """Return what there is of the body from a piece on, and the number of the next piece; nothing at its end."""
        while number >= len(self._pieces) and not self.ended:
            await self._change()
        if self.failed:
            raise ProviderError("the call that this retry had joined broke off")
        return b"".join(self._pieces[number:]), len(self._pieces)

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()


class _Same:
    """The body of a flight, read by one more client."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._number = 0

    async def next(self) -> bytes:
        """Return what has come since the last time."""
        data, self._number = await self._flight.piece(self._number)
        return data

    async def close(self) -> None:
        """The flight goes on without this reader."""


class Lead(msgspec.Struct, frozen=True):
    """The call is to be made; the flight is to be told what comes of it. ``retry_of`` is a failed call before it."""

    flight: Flight
    retry_of: str | None = None


class Join(msgspec.Struct, frozen=True):
    """The call is a retry of this flight."""

    flight: Flight


class Retries:
    """The calls of clients that say when they send one again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._flights: dict[_Slot, Flight] = {}
        self._done: deque[tuple[float, _Slot, Flight]] = deque()
        self._bytes = 0  # of those that have ended

    @property
    def held(self) -> int:
        """Flights that can be joined."""
        return len(self._flights)

    def enter(
        self, call_id: str, *, key_id: str, run_id: str | None, path: str, headers: Mapping[bytes, bytes], body: bytes
    ) -> Lead | Join | None:
        """Return what a call is to do; None for a client that does not say when it sends one again."""
        count, idempotency = headers.get(COUNT), headers.get(IDEMPOTENCY)
        if count is None and idempotency is None:
            return None
        self._forget()
        sight = (len(body), body[-_TAIL:]) if idempotency is None else (idempotency,)
        slot = (key_id, run_id, path, *sight)
        known = self._flights.get(slot)
        again = idempotency is not None or count not in (None, b"0")
        if known is not None and again and known.alone and known.body == body:
            if not known.failed:
                return Join(known)
            return self._lead(slot, call_id, body, known.call_id)
        if known is not None and not known.ended:
            known.alone = False
            lead = self._lead(slot, call_id, body)
            lead.flight.alone = False
            return lead
        return self._lead(slot, call_id, body)

    def _lead(self, slot: _Slot, call_id: str, body: bytes, retry_of: str | None = None) -> Lead:
        flight = Flight(call_id, body, lambda flight: self._hold(slot, flight))
        self._flights[slot] = flight
        return Lead(flight, retry_of)

    def _hold(self, slot: _Slot, flight: Flight) -> None:
        """Hold a flight that has ended for a while."""
        self._done.append((self._clock(), slot, flight))
        self._bytes += flight.size
        self._forget()

    def _forget(self) -> None:
        """Let go of flights that ended long ago, and of the oldest where they are too many."""
        before = self._clock() - KEPT_S
        while self._done and (self._done[0][0] <= before or self._bytes > KEPT_BYTES):
            _, slot, flight = self._done.popleft()
            self._bytes -= flight.size
            if self._flights.get(slot) is flight:
                del self._flights[slot]
