"""Named queries that go through a whole table, a page at a time, in the order of the keys."""

from collections.abc import Iterator
from typing import Any, TypeVar

import sqlalchemy as sa

from doorstep import types
from doorstep.store import schema
from doorstep.store.store import Store
from doorstep.types import Call, Record, Run

R = TypeVar("R", bound=Record)

RUN = schema.TABLES[types.Run]
CALL = schema.TABLES[types.Call]
PAGE = 500


def calls(store: Store, workflow: str | None, since: int) -> Iterator[list[Call]]:
    """Yield the calls that began at ``since`` or later: all, or those of a workflow's runs and that asked for it."""
    query = sa.select(CALL).where(CALL.c.started_us >= since)
    if workflow is not None:
        own = sa.exists().where(RUN.c.run_id == CALL.c.run_id, RUN.c.workflow == workflow)
        query = query.where(own | (CALL.c.requested_model == f"workflow/{workflow}"))
    return _pages(store, Call, query, CALL.c.call_id)


def runs(store: Store, workflow: str | None, since: int) -> Iterator[list[Run]]:
    """Yield the runs that began at ``since`` or later, of one workflow or of all."""
    query = sa.select(RUN).where(RUN.c.started_us >= since)
    if workflow is not None:
        query = query.where(RUN.c.workflow == workflow)
    return _pages(store, Run, query, RUN.c.run_id)


def _pages(store: Store, kind: type[R], query: sa.Select[Any], key: sa.Column[str]) -> Iterator[list[R]]:
    last = ""
    while page := [schema.from_row(kind, row) for row in store.rows(query.where(key > last).order_by(key).limit(PAGE))]:
        yield page
        (last,) = schema.key_of(page[-1])
