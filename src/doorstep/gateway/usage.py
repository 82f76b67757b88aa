"""What calls used and cost, summed from the record for ``/metrics``: it is known only after the call was read.

Each look adds the calls that came into the store since the last one, by one query outside the event loop.
"""

from contextlib import suppress
from threading import Lock
from typing import Any

import sqlalchemy as sa

from doorstep import types
from doorstep.errors import StoreError
from doorstep.gateway.histogram import TOKENS, Histogram
from doorstep.gateway.metrics import MOST_SERIES, OTHER
from doorstep.store import Store, arrivals, schema
from doorstep.types import Call

CALL = schema.TABLES[types.Call]
SUMS = ("cached_tokens", "cache_write_tokens", "reasoning_tokens", "cost_microusd")


class Used:
    """What the calls of one dialect to one model of one provider used."""

    def __init__(self) -> None:
        self.input = Histogram(TOKENS)
        self.output = Histogram(TOKENS)
        self.cached_tokens = 0  # of the input
        self.cache_write_tokens = 0
        self.reasoning_tokens = 0  # of the output
        self.cost_microusd = 0
        self.unpriced = 0  # calls


class Meter:
    """Sums since the start of this process."""

    def __init__(self, store: Store) -> None:
        self.used: dict[tuple[str, str, str], Used] = {}  # by dialect, provider, model
        self._store = store
        self._place = arrivals.newest(store, Call)
        self._lock = Lock()

    def read(self) -> None:
        """Add what came since the last time; while the store is away nothing comes."""
        with self._lock, suppress(StoreError):
            upto = arrivals.newest(self._store, Call)
            rows = self._store.rows(_query(self._place, upto))
            self._place = upto
            for row in rows:
                self._add(dict(row))

    def _add(self, row: dict[str, Any]) -> None:
        label = row["dialect"], row["provider"], row["served_model"]
        if label not in self.used and len(self.used) >= MOST_SERIES:
            label = row["dialect"], row["provider"], OTHER
        used = self.used.setdefault(label, Used())
        used.input.merge(_histogram(row, "input"))
        used.output.merge(_histogram(row, "output"))
        for name in (*SUMS, "unpriced"):
            setattr(used, name, getattr(used, name) + int(row[name]))


def _query(after: int, upto: int) -> sa.Select[Any]:
    group = CALL.c.dialect, CALL.c.provider, CALL.c.served_model
    sums = [_sum(CALL.c[name]).label(name) for name in SUMS]
    unpriced = _sum(sa.case((CALL.c.cost_microusd.is_(None), 1), else_=0)).label("unpriced")
    tokens = [*_counts(CALL.c.input_tokens, "input"), *_counts(CALL.c.output_tokens, "output")]
    return sa.select(*group, *sums, unpriced, *tokens).where(arrivals.between(Call, after, upto)).group_by(*group)


def _counts(column: sa.Column[Any], name: str) -> list[sa.Label[Any]]:
    """Return the counts of values up to each bound, of all, and the values' sum."""
    upto = [_sum(sa.case((column <= bound, 1), else_=0)).label(f"{name}_{at}") for at, bound in enumerate(TOKENS)]
    return [*upto, sa.func.count(column).label(f"{name}_all"), _sum(column).label(f"{name}_sum")]


def _histogram(row: dict[str, Any], name: str) -> Histogram:
    upto = [int(row[f"{name}_{at}"]) for at in range(len(TOKENS))]
    counts = [more - less for less, more in zip([0, *upto], [*upto, int(row[f"{name}_all"])], strict=True)]
    return Histogram(TOKENS, counts, int(row[f"{name}_sum"]))


def _sum(expression: Any) -> Any:
    return sa.func.coalesce(sa.func.sum(expression), 0)
