"""Changes of the schema, in order. A new database is made whole from the declarations; an older one is changed.

To change a declared column or table: append a function here, named ``mNNN_what``, that changes what exists, and
renew ``tests/store/schema.sql``. A function that has been released never changes, so it says its tables itself.
"""

from collections.abc import Callable

import sqlalchemy as sa

from doorstep import ids
from doorstep.errors import StoreError
from doorstep.store import schema

Migration = Callable[[sa.Connection], None]


def m001_first(connection: sa.Connection) -> None:
    """Make the tables of the first schema."""
    schema.metadata.create_all(connection)


def m002_gateway(connection: sa.Connection) -> None:
    """Add what the gateway tells of a call, its tries, feedback, the audit log and jobs."""
    for column in (
        "key_id TEXT",
        "customer TEXT",
        "upstream_dialect TEXT",
        "upstream_id TEXT",
        "cached_tokens BIGINT",
        "cache_write_tokens BIGINT",
        "reasoning_tokens BIGINT",
        "input_audio_tokens BIGINT",
        "output_audio_tokens BIGINT",
        "units JSON DEFAULT '{}' NOT NULL",
        "cached BOOLEAN DEFAULT FALSE NOT NULL",
    ):
        _run(connection, f"ALTER TABLE call ADD COLUMN {column}")
    _run(
        connection,
        "CREATE INDEX ix_call_customer ON call (customer)",
        "CREATE INDEX ix_call_request_digest ON call (request_digest)",
        "CREATE INDEX ix_call_response_digest ON call (response_digest)",
        "CREATE INDEX ix_cost_ref ON cost (ref)",
        "CREATE TABLE attempt (attempt_id TEXT NOT NULL PRIMARY KEY, call_id TEXT NOT NULL, provider TEXT NOT NULL, "
        "model TEXT NOT NULL, key TEXT, status_code BIGINT NOT NULL, error TEXT, started_us BIGINT NOT NULL, "
        "ended_us BIGINT NOT NULL)",
        "CREATE INDEX ix_attempt_call_id ON attempt (call_id)",
        "CREATE TABLE feedback (feedback_id TEXT NOT NULL PRIMARY KEY, at_us BIGINT NOT NULL, run_id TEXT, "
        "call_id TEXT, kind TEXT NOT NULL, name TEXT NOT NULL, value JSON, source TEXT NOT NULL, key_id TEXT)",
        "CREATE INDEX ix_feedback_run_id ON feedback (run_id)",
        "CREATE INDEX ix_feedback_call_id ON feedback (call_id)",
        "CREATE TABLE audit (audit_id TEXT NOT NULL PRIMARY KEY, at_us BIGINT NOT NULL, actor TEXT NOT NULL, "
        "action TEXT NOT NULL, subject TEXT NOT NULL, detail JSON NOT NULL)",
        "CREATE INDEX ix_audit_at_us ON audit (at_us)",
        "CREATE TABLE job (job_id TEXT NOT NULL PRIMARY KEY, kind TEXT NOT NULL, created_us BIGINT NOT NULL, "
        "call_id TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL, request JSON NOT NULL, key_id TEXT, "
        "remix_of TEXT)",
        "CREATE INDEX ix_job_call_id ON job (call_id)",
        "CREATE TABLE job_state (state_id TEXT NOT NULL PRIMARY KEY, job_id TEXT NOT NULL, at_us BIGINT NOT NULL, "
        "status TEXT NOT NULL, progress BIGINT NOT NULL, upstream_id TEXT, artefact TEXT, error TEXT)",
        "CREATE INDEX ix_job_state_job_id ON job_state (job_id)",
    )


def m003_arrival(connection: sa.Connection) -> None:
    """Note, where the database does not by itself, in which order runs and calls come."""
    if connection.dialect.name != "postgresql":
        return
    for table in ("run", "call"):
        _run(
            connection,
            f"ALTER TABLE {table} ADD COLUMN arrival BIGINT NOT NULL DEFAULT (pg_current_xact_id()::text::bigint)",
            f"CREATE INDEX ix_{table}_arrival ON {table} (arrival)",
        )


MIGRATIONS: tuple[Migration, ...] = (m001_first, m002_gateway, m003_arrival)


def is_complete(connection: sa.Connection) -> bool:
    """Say whether every migration was applied; refuse a database that a newer Doorstep wrote."""
    applied = _applied(connection)
    known = {function.__name__ for function in MIGRATIONS}
    if applied - known:
        raise StoreError(
            f"The database was written by a newer Doorstep (it has {', '.join(sorted(applied - known))}). "
            "Update Doorstep, or give another data folder."
        )
    return applied == known


def migrate(connection: sa.Connection) -> None:
    """Bring the database to this version's schema, in the caller's transaction."""
    applied = _applied(connection)  # read again: another process may have been first
    if not applied:
        schema.metadata.create_all(connection)
    for function in MIGRATIONS:
        if function.__name__ not in applied:
            if applied:
                function(connection)
            connection.execute(sa.insert(schema.migration).values(name=function.__name__, at_us=ids.now_us()))


def _run(connection: sa.Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(sa.text(statement))


def _applied(connection: sa.Connection) -> set[str]:
    if not sa.inspect(connection).has_table(schema.migration.name):
        return set()
    return set(connection.execute(sa.select(schema.migration.c.name)).scalars())
