"""What an administrator sees: the keys with what they have spent, and the log of who changed what.

The log is rows of the store that nothing changes afterwards.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from doorstep import ids
from doorstep.gateway.keys import Key, terms_of
from doorstep.gateway.limits import month_of
from doorstep.store import Store, queries
from doorstep.types import Audit

LOCAL = "local"  # the actor of changes over HTTP by the machine's own user


class Journal:
    """Notes what one actor does. ``actor`` is a key's id, ``local``, or ``cli:USER``."""

    def __init__(self, store: Store, actor: str) -> None:
        self._store = store
        self._actor = actor

    def note(self, action: str, subject: str, detail: dict[str, Any]) -> None:
        """Write an entry. ``StoreError`` when it cannot be kept: what nobody can see later should not happen."""
        self._store.add(
            Audit(
                audit_id=ids.new_id("audit"),
                at_us=ids.now_us(),
                actor=self._actor,
                action=action,
                subject=subject,
                detail=detail,
            )
        )


def entries(store: Store, limit: int) -> list[Audit]:
    """Return the newest entries, newest first."""
    return store.select(Audit, order_by="-at_us", limit=limit)


def shown(keys: Iterable[Key], store: Store) -> list[dict[str, Any]]:
    """Return keys as they may be shown, with what each has spent today and this month (UTC)."""
    now_us = ids.now_us()
    day: Counter[str | None] = Counter()
    month: Counter[str | None] = Counter()
    for row in queries.spent(store, month_of(now_us).begins_us):
        month[row.key_id] += row.cost_microusd
        if row.day == now_us // queries.DAY_US:
            day[row.key_id] += row.cost_microusd
    return [
        {
            "id": key.key_id,
            **terms_of(key),
            "created_us": key.created_us,
            "spent_day_microusd": day[key.key_id],
            "spent_month_microusd": month[key.key_id],
        }
        for key in keys
    ]
