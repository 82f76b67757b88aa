"""The tables of the record, declared once: one per class of ``types.RECORDS``, rendered for every database.

A field's annotation decides its column: lists, dicts and ``Any`` are JSON, ``bytes`` a blob, enums text.
This module opens no connection.
"""

import json
import re
import types as python_types
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import sqlalchemy as sa

from doorstep import types
from doorstep.types import Record

R = TypeVar("R", bound=Record)

COMPOSITE_KEYS: dict[type[Record], tuple[str, ...]] = {types.DatasetItem: ("dataset_id", "task_id")}

# What is looked up often; the primary keys have their own index.
INDEXES: dict[type[Record], tuple[tuple[str, ...], ...]] = {
    types.Run: (("evaluation_id",), ("workflow", "started_us"), ("customer",)),
    types.Call: (("run_id",), ("started_us",), ("customer",), ("request_digest",), ("response_digest",)),
    types.Attempt: (("call_id",),),
    types.Node: (("run_id",), ("content_digest",)),
    types.TokenSpan: (("call_id",), ("run_id",)),
    types.ToolCall: (("run_id",),),
    types.Grade: (("run_id",),),
    types.Feedback: (("run_id",), ("call_id",)),
    types.Audit: (("at_us",),),
    types.Job: (("call_id",),),
    types.JobState: (("job_id",),),
    types.Cost: (("workflow",), ("ref",)),
    types.DatasetItem: (("customer",),),
    types.ModelVersion: (("workflow",), ("dataset_id",)),
    types.Decision: (("workflow",),),
    types.Route: (("workflow", "at_us"),),
    types.TrainingStep: (("training_run",),),
}

# Columns that hold what people or models wrote: what deletion blanks. The rest is ids, times and numbers.
CONTENT: dict[type[Record], dict[str, Any]] = {
    types.Run: {"output": None, "error": None, "customer": None},
    types.Call: {"request_digest": None, "response_digest": None, "error": None, "customer": None},
    types.Attempt: {"error": None},
    types.Node: {"content_digest": ""},
    types.TokenSpan: {"ids": b"", "logprobs": None},
    types.ToolCall: {"arguments": None, "result": None, "error": None},
    types.Grade: {"why": None, "detail": None},
    types.Feedback: {"value": None},
    types.Job: {"request": {}},
    types.JobState: {"artefact": None, "error": None},
}

metadata = sa.MetaData()

blob = sa.Table(
    "blob",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),  # zlib
)
migration = sa.Table(
    "migration",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
)
erased = sa.Table(
    "erased",  # rows whose content was deleted on request: it is not written again
    metadata,
    sa.Column("table_name", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
)


def table_name(kind: type[Record]) -> str:
    """Return the table of a record class: ``TokenSpan`` is ``token_span``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def key_fields(kind: type[Record]) -> tuple[str, ...]:
    """Return the fields of the primary key: the first one, unless declared otherwise."""
    return COMPOSITE_KEYS.get(kind, kind.__struct_fields__[:1])


def key_of(record: Record) -> tuple[str, ...]:
    """Return a record's primary key."""
    return tuple(getattr(record, field) for field in key_fields(type(record)))


def time_field(kind: type[Record]) -> str | None:
    """Return the field that says when a row's fact happened: the first that ends in ``_us``."""
    return next((field for field in kind.__struct_fields__ if field.endswith("_us")), None)


def to_row(record: Record) -> dict[str, Any]:
    """Return a record as a row of plain values."""
    row: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(bytes,))
    return row


@cache
def to_values(kind: type[Record]) -> Callable[[Record], tuple[Any, ...]]:
    """Return what turns a record into the values of its row, in the order of its fields, as every driver takes them."""
    values_of = attrgetter(*kind.__struct_fields__)
    columns = list(TABLES[kind].c)
    hints = list(get_type_hints(kind).values())
    converters: list[tuple[int, Callable[[Any], Any]]] = [
        (at, _json_value) for at, column in enumerate(columns) if isinstance(column.type, sa.JSON)
    ]
    converters += [(at, str) for at, hint in enumerate(hints) if isinstance(hint, type) and issubclass(hint, StrEnum)]

    def convert(record: Record) -> tuple[Any, ...]:
        values = list(values_of(record))
        for at, converter in converters:
            values[at] = converter(values[at])
        return tuple(values)

    return convert


def from_row(kind: type[R], row: sa.RowMapping) -> R:
    """Return a row as a record."""
    # The mapping's keys are a subclass of str, which msgspec does not take; the columns are in the order of the fields.
    return msgspec.convert(dict(zip(kind.__struct_fields__, row.values(), strict=True)), kind, builtin_types=(bytes,))


def to_json(value: Any) -> str:
    """Write a JSON column: in ASCII, since models do write lone surrogates; NaN and infinity are not JSON."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _json_value(value: Any) -> str | None:
    """Return a value for a JSON column; most are empty."""
    if value is None:
        return None
    if value == {}:
        return "{}"
    return "[]" if value == [] else to_json(msgspec.to_builtins(value, builtin_types=(bytes,)))


def _column(name: str, annotation: Any, in_key: bool) -> sa.Column[Any]:
    options = get_args(annotation) if get_origin(annotation) in (Union, python_types.UnionType) else (annotation,)
    kinds = [option for option in options if option is not type(None)]
    nullable = annotation is Any or len(kinds) < len(options)
    return sa.Column(name, _column_type(kinds[0]), primary_key=in_key, nullable=nullable)


def _column_type(kind: Any) -> sa.types.TypeEngine[Any]:
    if kind is bool:
        return sa.Boolean()
    if kind is int:
        return sa.BigInteger()
    if kind is float:
        return sa.Double()
    if kind is bytes:
        return sa.LargeBinary()
    if kind is str or (isinstance(kind, type) and issubclass(kind, StrEnum)):
        return sa.Text()
    return sa.JSON(none_as_null=True)


def _table(kind: type[Record]) -> sa.Table:
    name, key, hints = table_name(kind), key_fields(kind), get_type_hints(kind)
    columns = [_column(field, hints[field], field in key) for field in kind.__struct_fields__]
    indexes = [sa.Index(f"ix_{name}_{'_'.join(fields)}", *fields) for fields in INDEXES.get(kind, ())]
    return sa.Table(name, metadata, *columns, *indexes)


TABLES: dict[type[Record], sa.Table] = {kind: _table(kind) for kind in types.RECORDS}

# SQLite numbers rows as they come, PostgreSQL does not: for ``arrivals.py`` it notes the transaction that wrote a row.
for _kind in (types.Run, types.Call):
    for _statement in (
        "ALTER TABLE %(table)s ADD COLUMN arrival BIGINT NOT NULL DEFAULT (pg_current_xact_id()::text::bigint)",
        "CREATE INDEX ix_%(table)s_arrival ON %(table)s (arrival)",
    ):
        _ddl = sa.DDL(_statement).execute_if(dialect="postgresql")  # type: ignore[no-untyped-call]
        sa.event.listen(TABLES[_kind], "after_create", _ddl)
