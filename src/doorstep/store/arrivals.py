"""In which order rows came into the store, so that a reader can go on where it stopped and misses none.

Ids and times do not tell: a call that began early may end, and be written, late. SQLite numbers rows as they come, and
has one writer at a time. PostgreSQL notes the transaction that wrote a row; a reader goes as far as the oldest one that
is still under way. Rows of a place come together, so a page may hold a few more than its limit.
"""

from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from doorstep.store import schema
from doorstep.store.store import Store
from doorstep.types import Record

R = TypeVar("R", bound=Record)
BEGINNING = 0


class _Place(sa.ColumnElement[int]):
    """Where a row stands in the order."""

    inherit_cache = False

    def __init__(self, kind: type[Record]) -> None:
        self.table = schema.TABLES[kind]
        self.type = sa.BigInteger()


class _Newest(_Place):
    """The last place up to which no row can come any more."""

    inherit_cache = False


@compiles(_Place, "sqlite")
def _rowid(place: _Place, _compiler: SQLCompiler, **_: Any) -> str:
    # Without an INTEGER PRIMARY KEY numbers may change in a VACUUM; they do not, since no row is ever deleted.
    return f"{place.table.name}.rowid"


@compiles(_Place, "postgresql")
def _transaction(place: _Place, _compiler: SQLCompiler, **_: Any) -> str:
    return f"{place.table.name}.arrival"


@compiles(_Newest, "sqlite")
def _last_rowid(place: _Place, _compiler: SQLCompiler, **_: Any) -> str:
    return f"(SELECT coalesce(max(rowid), 0) FROM {place.table.name})"


@compiles(_Newest, "postgresql")
def _last_transaction(_place: _Place, _compiler: SQLCompiler, **_: Any) -> str:
    return "(CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT) - 1)"


def newest(store: Store, kind: type[Record]) -> int:
    """Return the place after which the next rows of a kind will come."""
    return int(store.rows(sa.select(_Newest(kind).label("place")))[0]["place"])


def between(kind: type[Record], after: int, upto: int) -> sa.ColumnElement[bool]:
    """Return the condition for the rows of a kind that came after one place, up to another."""
    return sa.and_(_Place(kind) > after, _Place(kind) <= upto)


def page(store: Store, kind: type[R], after: int, limit: int) -> tuple[list[R], int]:
    """Return about ``limit`` rows that came after a place, in their order, and the place to go on from."""
    upto = newest(store, kind)
    inside = between(kind, after, upto)
    place, table = _Place(kind), schema.TABLES[kind]
    places = sa.select(place.label("place")).select_from(table).where(inside).order_by(place)
    full = store.rows(places.offset(limit - 1).limit(1))
    upto = int(full[0]["place"]) if full else upto
    rows = store.rows(sa.select(table).where(between(kind, after, upto)).order_by(place))
    return [schema.from_row(kind, row) for row in rows], upto
