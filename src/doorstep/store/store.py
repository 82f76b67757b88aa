"""The store: durable transactions of records in, records out, on SQLite or PostgreSQL.

Rows are only ever added. The one exception is deletion by customer, which blanks content (``erasure.py``).
This module knows no meaning of a record beyond its invariants. All methods are synchronous and may be
called from any thread; async callers use a thread.
"""

import threading
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import sqlalchemy as sa

from doorstep import ids
from doorstep.errors import StoreError, UsageError
from doorstep.store import database, erasure, invariants, migrations, schema
from doorstep.store.erasure import Erased
from doorstep.types import Record

R = TypeVar("R", bound=Record)
QUICK = 1  # zlib level: bodies are small, and the record must keep up with the traffic
LITTLE = 4  # zlib's memory level: to set up its usual memory takes longer than to compress a small body


class Store:
    """One record of facts. Every method raises ``StoreError`` with what to do when the database cannot."""

    def __init__(self, engine: sa.Engine) -> None:
        self._reader = engine
        self._writer = engine.execution_options(**{database.WRITES: True})
        self._lock = threading.Lock()  # one writer per process; between processes the database's lock decides
        with self._reading() as connection:
            complete = migrations.is_complete(connection)
        if not complete:
            with self._writing() as connection:
                migrations.migrate(connection)

    @classmethod
    def open(cls, where: str | Path) -> "Store":
        """Open a file (made with its folder when missing) or a database URL such as ``postgresql+psycopg://…``."""
        engine = database.connect(where)
        try:
            return cls(engine)
        except BaseException:
            engine.dispose()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._reader.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, *records: Record, blobs: Mapping[str, bytes] | None = None) -> None:
        """Write records and bodies (by their SHA-256) in one durable transaction.

        The same row again is ignored, so a replay does no harm; another row under the same key is a ``StoreError``.
        """
        for record in records:
            invariants.check(record)
        bodies = dict(blobs or {})
        for digest, body in bodies.items():
            invariants.check_blob(digest, body)
        if not records and not bodies:
            return
        with self._writing() as connection:
            if bodies:
                _insert_bodies(connection, bodies)
            for kind, group in _by_kind(records).items():
                _insert(connection, kind, group)

    def get(self, kind: type[R], key: str | tuple[str, ...], /) -> R | None:
        """Return the row with this primary key, or ``None``."""
        keys = (key,) if isinstance(key, str) else key
        found = self._read(kind, _where(kind, dict(zip(schema.key_fields(kind), keys, strict=True)), None))
        return found[0] if found else None

    def select(
        self,
        kind: type[R],
        /,
        *,
        order_by: str | None = None,
        limit: int | None = None,
        since: int | None = None,
        **equals: Any,
    ) -> list[R]:
        """Return the rows whose fields equal the given values.

        They come in the order of their key (ids sort by time), or by the field ``order_by`` (``-field`` descending).
        ``since`` keeps rows whose time, the first ``_us`` field, is that moment or later.
        """
        query = _where(kind, equals, since).order_by(*_order(kind, order_by)).limit(limit)
        return self._read(kind, query)

    def select_in(self, kind: type[R], field: str, values: Collection[str], /) -> list[R]:
        """Return the rows whose ``field`` is one of ``values``, in the order of their key."""
        column, wanted = _column(kind, field), sorted(values)
        found: list[R] = []
        for start in range(0, len(wanted), database.CHUNK):
            query = sa.select(schema.TABLES[kind]).where(column.in_(wanted[start : start + database.CHUNK]))
            found += self._read(kind, query)
        return sorted(found, key=schema.key_of)

    def known(self, kind: type[Record], keys: Collection[str], /) -> set[str]:
        """Return those of the primary keys that are stored."""
        (field,) = schema.key_fields(kind)
        with self._reading() as connection:
            return database.known(connection, schema.TABLES[kind].c[field], keys)

    def rows(self, query: sa.Executable) -> Sequence[sa.RowMapping]:
        """Run one of the named queries of ``queries.py``."""
        with self._reading() as connection:
            return connection.execute(query).mappings().all()

    def blob(self, digest: str) -> bytes | None:
        """Return a body by its digest, or ``None``."""
        rows = self.rows(sa.select(schema.blob.c.body).where(schema.blob.c.digest == digest))
        return zlib.decompress(rows[0]["body"]) if rows else None

    def prove(self) -> None:
        """Raise ``StoreError`` when the store takes no row at all."""
        proof = str(ids.now_us())
        with self._writing() as connection:
            connection.execute(sa.insert(schema.blob).values(digest=proof, body=b""))
            connection.execute(sa.delete(schema.blob).where(schema.blob.c.digest == proof))

    def delete_customer(self, customer: str) -> Erased:
        """Delete what a customer's runs and calls contain.

        Rows stay as ids, times and numbers, so that decisions and sums still hold; adapters that were trained on the
        customer's records and files of artefacts are named: they are the caller's to retire.
        """
        with self._writing() as connection:
            return erasure.delete_customer(connection, customer)

    def expire(self, before_us: int, key_id: str) -> Erased:
        """Delete what the calls of a key contain that began before a moment, as ``delete_customer`` does."""
        with self._writing() as connection:
            return erasure.expire(connection, before_us, key_id)

    def _read(self, kind: type[R], query: sa.Select[Any]) -> list[R]:
        return _as_records(kind, self.rows(query))

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with database.translated_errors(self._reader), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._lock, database.translated_errors(self._reader), self._writer.begin() as connection:
            yield connection


def _insert(connection: sa.Connection, kind: type[R], records: Sequence[R]) -> None:
    to_values = schema.to_values(kind)
    rows = [to_values(record) for record in records]
    if database.insert_new(connection, schema.TABLES[kind], rows) != len(rows):
        _check_same(connection, kind, records)


def _insert_bodies(connection: sa.Connection, bodies: Mapping[str, bytes]) -> None:
    known = database.known(connection, schema.blob.c.digest, bodies.keys())  # a look-up is cheaper than compression
    fresh = [(digest, _compressed(body)) for digest, body in bodies.items() if digest not in known]
    if fresh:
        database.insert_new(connection, schema.blob, fresh)


def _compressed(body: bytes) -> bytes:
    compressor = zlib.compressobj(QUICK, zlib.DEFLATED, zlib.MAX_WBITS, LITTLE)
    return compressor.compress(body) + compressor.flush()


def _as_records(kind: type[R], rows: Iterable[sa.RowMapping]) -> list[R]:
    return [schema.from_row(kind, row) for row in rows]


def _by_kind(records: Sequence[Record]) -> dict[type[Record], list[Record]]:
    groups: dict[type[Record], list[Record]] = {}
    for record in records:
        groups.setdefault(type(record), []).append(record)
    return groups


def _check_same(connection: sa.Connection, kind: type[R], records: Sequence[R]) -> None:
    """Refuse records that differ from what is stored under their key, except where the content was erased."""
    table = schema.TABLES[kind]
    key = sa.tuple_(*(table.c[field] for field in schema.key_fields(kind)))
    for start in range(0, len(records), database.CHUNK):
        part = records[start : start + database.CHUNK]
        query = sa.select(table).where(key.in_([schema.key_of(record) for record in part]))
        known = {schema.key_of(row): row for row in _as_records(kind, connection.execute(query).mappings())}
        for record in part:
            stored = known[schema.key_of(record)]
            if schema.to_row(stored) != schema.to_row(record) and not erasure.is_erased(connection, record):
                raise StoreError(
                    f"{table.name} {'/'.join(schema.key_of(record))} is stored already with other values. "
                    "Rows never change: write a correction under a new id."
                )


def _where(kind: type[Record], equals: Mapping[str, Any], since: int | None) -> sa.Select[Any]:
    query = sa.select(schema.TABLES[kind]).where(*(_column(kind, name) == value for name, value in equals.items()))
    if since is None:
        return query
    field = schema.time_field(kind)
    if field is None:
        raise UsageError(f"{schema.table_name(kind)} rows have no time of their own; leave 'since' out")
    return query.where(_column(kind, field) >= since)


def _order(kind: type[Record], order_by: str | None) -> list[sa.ColumnElement[Any]]:
    key = [_column(kind, field).asc() for field in schema.key_fields(kind)]
    if order_by is None:
        return list(key)
    column = _column(kind, order_by.removeprefix("-"))
    return [column.desc() if order_by.startswith("-") else column.asc(), *key]


def _column(kind: type[Record], field: str) -> sa.Column[Any]:
    table = schema.TABLES[kind]
    if field not in table.c:
        raise UsageError(f"{table.name} has no field '{field}'; it has {', '.join(table.c.keys())}")
    return table.c[field]
