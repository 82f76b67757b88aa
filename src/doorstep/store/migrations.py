"""Changes of the schema, in order. A new database is made whole from the declarations; an older one is changed.

To change a declared column or table: append a function here, named ``mNNN_what``, that changes what exists, and
renew ``tests/store/schema.sql``. A function that has been released never changes.
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


MIGRATIONS: tuple[Migration, ...] = (m001_first,)


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


def _applied(connection: sa.Connection) -> set[str]:
    if not sa.inspect(connection).has_table(schema.migration.name):
        return set()
    return set(connection.execute(sa.select(schema.migration.c.name)).scalars())
