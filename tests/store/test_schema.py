"""The declarations render on both databases, and the released schema only changes together with a migration."""

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from doorstep.store import Store
from doorstep.store.schema import TABLES, metadata
from doorstep.types import RECORDS

SNAPSHOT = Path(__file__).with_name("schema.sql")


def ddl(dialect: sa.Dialect) -> str:
    statements = []
    for table in metadata.sorted_tables:
        statements.append(str(sa.schema.CreateTable(table).compile(dialect=dialect)).strip())
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        statements += [str(sa.schema.CreateIndex(index).compile(dialect=dialect)) for index in indexes]
    return "".join(f"{' '.join(statement.split())};\n" for statement in statements)


def test_every_record_has_a_table_with_its_fields():
    for kind in RECORDS:
        assert tuple(TABLES[kind].c.keys()) == kind.__struct_fields__


def test_columns_take_the_types_of_each_database():
    on_postgresql = ddl(postgresql.dialect())
    assert "ids BYTEA NOT NULL, logprobs BYTEA, exact BOOLEAN NOT NULL" in on_postgresql
    assert "metrics JSON NOT NULL, at_us BIGINT NOT NULL" in on_postgresql
    assert "propensity DOUBLE PRECISION, customer TEXT, output JSON" in on_postgresql
    assert "PRIMARY KEY (dataset_id, task_id)" in ddl(sqlite.dialect())


def test_the_schema_changes_only_with_a_migration():
    why = "A declared column changed: add a migration (see migrations.py) and renew tests/store/schema.sql with ddl()."
    assert ddl(sqlite.dialect()) == SNAPSHOT.read_text("utf-8"), why


def test_queries_render_on_postgresql():
    statement = postgresql.insert(TABLES[RECORDS[0]]).on_conflict_do_nothing()
    assert "ON CONFLICT DO NOTHING" in str(statement.compile(dialect=postgresql.dialect()))


def test_a_file_has_exactly_the_declared_tables(tmp_path):
    with Store.open(tmp_path / "doorstep.db"):
        engine = sa.create_engine(f"sqlite:///{tmp_path}/doorstep.db")
        assert set(sa.inspect(engine).get_table_names()) == set(metadata.tables)
        engine.dispose()
