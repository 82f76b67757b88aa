"""Erasure: blanks what runs and calls contain, by customer or by age, and names what else remembers it.

Rows stay, with their ids, times and numbers: sums and decisions still hold. Each blanked row is noted in ``erased``,
so that a late replay of the same row cannot bring the content back.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from doorstep import ids, types
from doorstep.store import database, schema
from doorstep.types import Record, Split

RUN = schema.TABLES[types.Run]
CALL = schema.TABLES[types.Call]
NODE = schema.TABLES[types.Node]
JOB = schema.TABLES[types.Job]
JOB_STATE = schema.TABLES[types.JobState]
ITEM = schema.TABLES[types.DatasetItem]
MODEL = schema.TABLES[types.ModelVersion]

REFERENCES = (CALL.c.request_digest, CALL.c.response_digest, NODE.c.content_digest)
OF_CALLS = (types.Call, types.Attempt, types.Node, types.TokenSpan, types.Job, types.JobState)  # what has an age


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What was blanked, and what the caller still has to retire."""

    runs: int
    calls: int
    adapters: list[str]  # paths of adapters that were trained on it, directly or through a parent
    artefacts: list[str]  # files that no other job refers to


def delete_customer(connection: sa.Connection, customer: str) -> Erased:
    """Blank a customer's runs and calls. A run with a call that was made for the customer is the customer's."""
    runs = _column(connection, sa.select(RUN.c.run_id).where(RUN.c.customer == customer))
    own = sa.select(CALL.c.run_id).where(CALL.c.customer == customer, CALL.c.run_id.is_not(None))
    runs |= _column(connection, own)
    calls = _column(connection, sa.select(CALL.c.call_id).where(CALL.c.customer == customer))
    calls |= _among(connection, CALL.c.call_id, CALL.c.run_id, runs)
    artefacts = _blank(connection, schema.CONTENT, runs, calls)
    return Erased(runs=len(runs), calls=len(calls), adapters=_adapters(connection, customer), artefacts=artefacts)


def expire(connection: sa.Connection, before_us: int, key_id: str) -> Erased:
    """Blank the calls of a key that began before a moment; messages of a run go when all its calls have gone."""
    old = sa.and_(CALL.c.key_id == key_id, CALL.c.started_us < before_us)
    full = sa.or_(CALL.c.request_digest.is_not(None), CALL.c.response_digest.is_not(None))
    rows = connection.execute(sa.select(CALL.c.call_id, CALL.c.run_id).where(old, full)).all()
    calls, runs = {row.call_id for row in rows}, {row.run_id for row in rows if row.run_id is not None}
    for part in _parts(runs):
        runs -= _column(connection, sa.select(CALL.c.run_id).where(CALL.c.run_id.in_(part), sa.not_(old)))
    contents: dict[type[Record], dict[str, object]] = {kind: {**schema.CONTENT[kind]} for kind in OF_CALLS}
    del contents[types.Call]["customer"]  # who it was for is no content: a deletion by customer still finds it
    return Erased(runs=len(runs), calls=len(calls), adapters=[], artefacts=_blank(connection, contents, runs, calls))


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


def _blank(
    connection: sa.Connection, contents: Mapping[type[Record], dict[str, object]], runs: set[str], calls: set[str]
) -> list[str]:
    """Blank what belongs to runs and calls, drop the bodies that nothing else refers to; return the artefacts."""
    jobs = _among(connection, JOB.c.job_id, JOB.c.call_id, calls)
    bodies = _among(connection, NODE.c.content_digest, NODE.c.run_id, runs)
    for column in (CALL.c.request_digest, CALL.c.response_digest):
        bodies |= _among(connection, column, CALL.c.call_id, calls)
    artefacts = _among(connection, JOB_STATE.c.artefact, JOB_STATE.c.job_id, jobs)
    owners = {"run_id": runs, "call_id": calls, "job_id": jobs}
    for kind, blanks in contents.items():
        table = schema.TABLES[kind]
        for owner, values in owners.items():
            if owner in table.c:
                _blank_rows(connection, kind, blanks, table.c[owner], values)
    _drop_unreferenced(connection, bodies)
    return sorted(artefacts - _among(connection, JOB_STATE.c.artefact, JOB_STATE.c.artefact, artefacts))


def _blank_rows(
    connection: sa.Connection,
    kind: type[Record],
    blanks: dict[str, object],
    owner: sa.Column[str],
    values: Collection[str],
) -> None:
    table, (key,) = schema.TABLES[kind], schema.key_fields(kind)
    noted = _among(connection, table.c[key], owner, values)
    for part in _parts(values):
        connection.execute(sa.update(table).where(owner.in_(part)).values(**blanks))
    if noted:
        now = ids.now_us()
        database.insert_new(connection, schema.erased, [(table.name, value, now) for value in noted])


def _drop_unreferenced(connection: sa.Connection, bodies: Collection[str]) -> None:
    """Delete bodies that no other row refers to: a system prompt is stored once for all."""
    digest = schema.blob.c.digest
    if connection.dialect.name == "postgresql":  # a call that is being written may rely on a body that it found there
        connection.execute(sa.text("LOCK TABLE blob IN ACCESS EXCLUSIVE MODE"))
    for part in _parts(bodies):
        unused = [~sa.exists().where(column == digest) for column in REFERENCES]
        connection.execute(sa.delete(schema.blob).where(digest.in_(part), *unused))


def _among(
    connection: sa.Connection, wanted: sa.Column[str], column: sa.Column[str], values: Collection[str]
) -> set[str]:
    """Return what a column holds in the rows in which another has one of the values."""
    found: set[str] = set()
    for part in _parts(values):
        found |= _column(connection, sa.select(wanted).where(column.in_(part), wanted.is_not(None)))
    return found


def _column(connection: sa.Connection, query: sa.Select[Any]) -> set[str]:
    return set(connection.execute(query).scalars())


def _parts(values: Collection[str]) -> Iterator[Sequence[str]]:
    listed = sorted(values)
    for start in range(0, len(listed), database.CHUNK):
        yield listed[start : start + database.CHUNK]
