"""Connections: how SQLite and PostgreSQL are opened, and what their errors mean for the user.

SQLite runs in WAL mode: readers never wait, writers queue for the file's lock. ``synchronous=FULL`` because an
acknowledged row should outlive a power cut too, not only a killed process (for which NORMAL would be enough).
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from doorstep.errors import StoreError
from doorstep.store import schema

WRITES = "doorstep_writes"  # execution option of connections that will write
LOCK_TIMEOUT_S = 30.0
LOG_PAGES = 8000  # of 4 KB
CACHE_KB = 8000
CHUNK = 500  # values in one IN list, well under every database's limit

_SQLITE_ADVICE = (
    (
        "disk is full",
        "The disk is full and the last write was not kept. Free some space on the disk of {where} and try again.",
    ),
    (
        "disk i/o error",
        "The disk refused a write to {where}. Check that it has free space and is healthy, then try again.",
    ),
    (
        "locked",
        f"Another process was writing to {{where}} for {LOCK_TIMEOUT_S:.0f} s. Wait for it or stop it, and try again.",
    ),
    ("not a database", "{where} is not a database of Doorstep. Move the file away, or give another data folder."),
    ("malformed", "{where} is damaged. Restore it from a backup, or move it away to begin anew."),
    ("unable to open", "{where} cannot be opened. Check that its folder exists and that you may write there."),
    ("readonly", "{where} is read-only. Check the rights of the file and of its folder."),
    (
        "no such",
        "{where} has another schema than this version of Doorstep. Use the version that wrote it, or a new folder.",
    ),
    ("json compliant", "A record holds NaN or infinity, which cannot be stored. Leave an unknown number out (None)."),
)


def connect(where: str | Path) -> sa.Engine:
    """Return an engine for a file path or a database URL; nothing is opened yet."""
    url = sa.make_url(where) if isinstance(where, str) and "://" in where else _file_url(Path(where))
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, json_serializer=schema.to_json, pool_pre_ping=True)
    engine = sa.create_engine(url, json_serializer=schema.to_json, connect_args={"timeout": LOCK_TIMEOUT_S})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> int:
    """Insert rows of values, leaving those with a known key alone; return how many are new.

    Goes to the driver itself: SQLAlchemy's handling of parameters takes four times as long as the insertion.
    """
    statement = _insert_statement(connection.dialect, table)
    return connection.exec_driver_sql(statement, list(rows)).rowcount


def known(connection: sa.Connection, column: sa.Column[Any], values: Collection[str]) -> set[str]:
    """Return those of the values that a column has."""
    wanted, found = list(values), set()
    name, table = (_quoted(connection.dialect, part) for part in (column.name, column.table.name))
    for start in range(0, len(wanted), CHUNK):
        part = tuple(wanted[start : start + CHUNK])
        marks = ", ".join([_mark(connection.dialect)] * len(part))
        query = f"SELECT {name} FROM {table} WHERE {name} IN ({marks})"
        found |= set(connection.exec_driver_sql(query, part).scalars())
    return found


@cache
def _insert_statement(dialect: sa.Dialect, table: sa.Table) -> str:
    columns = ", ".join(_quoted(dialect, name) for name in table.c.keys())  # noqa: SIM118 - columns are not names
    marks = ", ".join([_mark(dialect)] * len(table.c))
    return f"INSERT INTO {_quoted(dialect, table.name)} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"


def _quoted(dialect: sa.Dialect, name: str) -> str:
    return dialect.identifier_preparer.quote(name)


def _mark(dialect: sa.Dialect) -> str:
    return "?" if dialect.name == "sqlite" else "%s"


@contextmanager
def translated_errors(engine: sa.Engine) -> Iterator[None]:
    """Turn the database's errors into ``StoreError`` that says what to do."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, ValueError, OverflowError) as error:
        raise StoreError(_advice(engine, error)) from error


def _advice(engine: sa.Engine, error: Exception) -> str:
    where = engine.url.database if engine.dialect.name == "sqlite" else engine.url.render_as_string(hide_password=True)
    text = str(getattr(error, "orig", None) or error)
    for sign, advice in _SQLITE_ADVICE:
        if sign in text.lower():
            return advice.format(where=where)
    return (
        f"The record at {where} could not be read or written: {text}. If trying again does not help, report this text."
    )


def _file_url(path: Path) -> sa.URL:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{path.parent} cannot be made ({error.strerror}). Give a data folder where you may write."
        ) from error
    return sa.URL.create("sqlite", database=str(path))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says, not where the driver guesses
    cursor = connection.cursor()
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    # Digests are random, so each call changes a dozen pages of indexes. A larger log has them written back together,
    # and a larger cache has them read once: 25 KB written per call instead of 68, three quarters of the time.
    cursor.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
    cursor.execute(f"PRAGMA cache_size=-{CACHE_KB}")
    cursor.execute("PRAGMA secure_delete=ON")  # deletion by customer must not leave the text in free pages
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # IMMEDIATE takes the write lock at once: a transaction that reads first and writes later could not wait for it.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITES) else "BEGIN")
