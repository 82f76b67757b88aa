"""Deletion by customer: blanks what a customer's runs contain, and names the adapters that learned from it.

Rows stay, with their ids, times and numbers: sums and decisions still hold. Each blanked row is noted in ``erased``,
so that a late replay of the same row cannot bring the content back.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from doorstep import ids, types
from doorstep.store import schema
from doorstep.types import Record, Split

RUN = schema.TABLES[types.Run]
ITEM = schema.TABLES[types.DatasetItem]
MODEL = schema.TABLES[types.ModelVersion]


def delete_customer(connection: sa.Connection, customer: str) -> list[str]:
    """Blank a customer's content; return the paths of adapters trained on it, directly or through a parent."""
    adapters = _adapters(connection, customer)
    run_ids = connection.execute(sa.select(RUN.c.run_id).where(RUN.c.customer == customer)).scalars().all()
    bodies = {digest for column in _references() for digest in _digests(connection, column, run_ids)}
    for kind, blanks in schema.CONTENT.items():
        for run_id in run_ids:
            _blank(connection, kind, blanks, run_id)
    _drop_unreferenced(connection, bodies)
    return adapters


def is_erased(connection: sa.Connection, record: Record) -> bool:
    """Say whether the content of this row was deleted on request."""
    name, key = schema.table_name(type(record)), "/".join(schema.key_of(record))
    table = schema.erased
    query = sa.select(table.c.key).where(table.c.table_name == name, table.c.key == key)
    return connection.execute(query).first() is not None


def _adapters(connection: sa.Connection, customer: str) -> list[str]:
    datasets = sa.select(ITEM.c.dataset_id).where(ITEM.c.customer == customer, ITEM.c.split == Split.TRAIN)
    models = connection.execute(sa.select(MODEL).order_by(MODEL.c.created_us)).mappings().all()
    trained_on = set(connection.execute(datasets).scalars())
    touched = {model["model_id"] for model in models if model["dataset_id"] in trained_on}
    for _ in models:  # a child of a touched model is touched; as many rounds as the longest chain can need
        touched |= {model["model_id"] for model in models if model["parent"] in touched}
    return [model["path"] for model in models if model["model_id"] in touched]


def _references() -> tuple[sa.Column[Any], ...]:
    call, node = schema.TABLES[types.Call], schema.TABLES[types.Node]
    return call.c.request_digest, call.c.response_digest, node.c.content_digest


def _digests(connection: sa.Connection, column: sa.Column[Any], run_ids: Sequence[str]) -> list[str]:
    found: list[str] = []
    for run_id in run_ids:
        found += connection.execute(
            sa.select(column).where(column.table.c.run_id == run_id, column.is_not(None))
        ).scalars()
    return found


def _blank(connection: sa.Connection, kind: type[Record], blanks: dict[str, Any], run_id: str) -> None:
    table, (key,) = schema.TABLES[kind], schema.key_fields(kind)
    keys = connection.execute(sa.select(table.c[key]).where(table.c.run_id == run_id)).scalars().all()
    if not keys:
        return
    connection.execute(sa.update(table).where(table.c.run_id == run_id).values(**blanks))
    noted = [{"table_name": table.name, "key": value, "at_us": ids.now_us()} for value in keys]
    connection.execute(sa.insert(schema.erased), noted)


def _drop_unreferenced(connection: sa.Connection, bodies: set[str]) -> None:
    """Delete bodies that no other customer's row refers to: a system prompt is stored once for all."""
    for digest in bodies:
        used = any(
            connection.execute(sa.select(column).where(column == digest).limit(1)).first() for column in _references()
        )
        if not used:
            connection.execute(sa.delete(schema.blob).where(schema.blob.c.digest == digest))
