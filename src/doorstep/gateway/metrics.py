"""Counts of the gateway's calls, taken on the hot path; ``exposition.py`` spells them for Prometheus.

A client can name any model, so what can be told apart is bounded: a model that its provider does not know opens no
series of its own, and past ``MOST_SERIES`` no other does. Their calls are counted under the model ``other``.
"""

from collections import Counter
from collections.abc import Sequence

from doorstep.gateway.capture import Attempt
from doorstep.gateway.histogram import SECONDS, Histogram

Labels = tuple[tuple[str, str], ...]
Sample = tuple[Labels, float]
Family = tuple[str, str, str, list[Sample]]  # name, kind (counter or gauge), meaning, samples

MOST_SERIES = 500
OTHER = "other"
NOBODY = "none"  # provider of calls that reached nobody who could answer
_UNKNOWN = (400, 404)  # what an upstream says to a model that it does not have


class Series:
    """The calls of one dialect to one model of one provider."""

    __slots__ = ("broken", "cached", "first_byte", "seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.seconds = Histogram(SECONDS)
        self.first_byte = Histogram(SECONDS)
        self.broken = 0  # failed after the first byte
        self.cached = 0  # answered from our own cache


class Metrics:
    """Counted since the start of the process."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str, str], Series] = {}  # by dialect, provider, model
        self.failed: Counter[tuple[str, int]] = Counter()  # tries, by provider and status; 0: there was no answer
        self.retries: Counter[str] = Counter()  # by provider
        self.fallbacks: Counter[tuple[str, str]] = Counter()  # from provider, to provider
        self.limited: Counter[str] = Counter()  # calls refused by a limit, by its code

    def count(
        self,
        dialect: str,
        provider: str,
        model: str,
        status: int,
        seconds: float,
        first_s: float | None = None,
        *,
        cached: bool = False,
        broken: bool = False,
    ) -> None:
        """Count a call; ``broken`` when it failed after its first byte, ``cached`` when nobody was asked."""
        series = self.series.get((dialect, provider, model)) or self._open(dialect, provider, model, status)
        series.statuses[status] = series.statuses.get(status, 0) + 1
        series.seconds.add(seconds)
        if first_s is not None:
            series.first_byte.add(first_s)
        series.cached += cached
        series.broken += broken

    def count_tries(self, failed: Sequence[Attempt], answered: tuple[str, str] | None) -> None:
        """Count the tries of a call that failed, and whom the others went to; ``answered`` has provider and model."""
        tried = [(one.provider, one.model) for one in failed]
        for one in failed:
            self.failed[one.provider, one.status] += 1
        for before, after in zip(tried, [*tried[1:], *([answered] if answered else [])], strict=False):
            if before == after:
                self.retries[after[0]] += 1
            else:
                self.fallbacks[before[0], after[0]] += 1

    def count_limited(self, code: str) -> None:
        """Count a call that a key's or a workflow's limit refused."""
        self.limited[code] += 1

    def _open(self, dialect: str, provider: str, model: str, status: int) -> Series:
        if status in _UNKNOWN or len(self.series) >= MOST_SERIES:
            model = OTHER
        return self.series.setdefault((dialect, provider, model), Series())
