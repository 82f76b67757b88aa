"""Which of a provider's keys to use: a key that was refused or has had enough rests, for the model it happened with."""

from collections.abc import Collection, Sequence

import msgspec

BUSY_S = 1.0  # first rest of a busy key whose provider does not say for how long; doubles each time
MOST_REST_S = 60.0
MOST_ASKED_REST_S = 300.0  # however long the provider asks for
REFUSED_S = 60.0  # rest of a key that was not accepted
MOST_RESTS = 1000  # kept; a client can name any model


class _Rest(msgspec.Struct):
    until: float
    strikes: int
    status: int  # for a call that comes to nothing by it
    why: str


class Resting(msgspec.Struct, frozen=True, kw_only=True):
    """A key that rests, for ``/metrics`` and the console."""

    key: str
    model: str
    seconds: float
    why: str


class KeyRing:
    """The keys of one provider, by number. One without keys has a ring of one, so that it too can have had enough."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels or [""]
        self._count = len(self._labels)
        self._rests: dict[tuple[int, str], _Rest] = {}

    def soonest(self, model: str, start: int, out: Collection[int], now: float) -> tuple[int, float] | None:
        """Return the key that is free soonest and in how many seconds, not one of ``out``; None where none is left.

        Among free ones the first from ``start`` on counts: a run begins with the same key each time, since what a
        provider has cached of its prompt belongs to the key's account.
        """
        if not self._rests and not out:
            return start % self._count, 0.0
        numbers = [(start + step) % self._count for step in range(self._count)]
        waits = [(self._wait(number, model, now), number) for number in numbers if number not in out]
        if not waits:
            return None
        wait, number = min(waits, key=lambda found: found[0])
        return number, wait

    def busy(self, key: int, model: str, seconds: float | None, now: float, said: str) -> None:
        """Let a key rest that has had enough, as long as its provider asks for."""
        known = self._rests.get((key, model))
        strikes = known.strikes + 1 if known else 1
        own = min(MOST_REST_S, BUSY_S * 2.0 ** min(strikes - 1, 10))
        rest_s = min(seconds, MOST_ASKED_REST_S) if seconds else own  # 0 would be a storm of calls
        self._rest(key, model, _Rest(now + rest_s, strikes, 429, f"has had enough ({said})"))

    def refused(self, key: int, model: str, now: float, said: str) -> None:
        """Let a key rest that was not accepted."""
        self._rest(key, model, _Rest(now + REFUSED_S, 1, 502, f"did not accept our key ({said})"))

    def succeeded(self, key: int, model: str) -> None:
        """Forget what was held against a key."""
        if self._rests:
            self._rests.pop((key, model), None)

    def why(self, key: int, model: str) -> tuple[int, str]:
        """Return the status and the text for a call that comes to nothing because this key rests."""
        rest = self._rests[key, model]
        return rest.status, rest.why

    def resting(self, now: float) -> list[Resting]:
        """Return the keys that rest now."""
        return [
            Resting(key=self._labels[key], model=model, seconds=rest.until - now, why=rest.why)
            for (key, model), rest in self._rests.items()
            if rest.until > now
        ]

    def _wait(self, key: int, model: str, now: float) -> float:
        rest = self._rests.get((key, model))
        return max(0.0, rest.until - now) if rest else 0.0

    def _rest(self, key: int, model: str, rest: _Rest) -> None:
        self._rests.pop((key, model), None)  # so that the newest comes last
        self._rests[key, model] = rest
        if len(self._rests) > MOST_RESTS:
            del self._rests[next(iter(self._rests))]
