"""What was acknowledged is there: after kill -9, with several writers, and when the disk or the file is bad."""

import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from doorstep.errors import StoreError
from doorstep.store import Store, database
from doorstep.types import Call, Cost

WRITER = """
import sys
from doorstep.store import Store
from doorstep.types import Cost

with Store.open(sys.argv[1]) as store:
    for number in range(int(sys.argv[3])):
        name = f"{sys.argv[2]}_{number:06}"
        rows = [
            Cost(cost_id=f"{name}_{part}", scope="train", ref=name, workflow=None, quantity=1.0, unit="cpu_second",
                 amount_microusd=number, basis="estimated", at_us=number)
            for part in "ab"
        ]
        store.add(*rows, blobs={})
        print(name, flush=True)
"""


def writer(path, name, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, path, name, str(count)], stdout=subprocess.PIPE, text=True)


def integrity(path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone()[0]


@pytest.mark.parametrize("seed", range(3))
def test_kill_nine_loses_nothing_acknowledged(tmp_path, seed):
    path = tmp_path / "doorstep.db"
    with writer(path, "w", 1_000_000) as process:
        acknowledged = [process.stdout.readline().strip() for _ in range(random.Random(seed).randint(1, 300))]
        process.kill()
        acknowledged += process.stdout.read().split()
    assert integrity(path) == "ok"
    with Store.open(path) as store:
        kept = {}
        for cost in store.select(Cost):
            kept.setdefault(cost.ref, []).append(cost.cost_id)
    assert set(acknowledged) <= set(kept)
    assert all(len(rows) == 2 for rows in kept.values())  # a transaction is there whole or not at all


def test_processes_share_one_file(tmp_path):
    path = tmp_path / "doorstep.db"
    processes = [writer(path, name, 50) for name in "xyz"]
    assert [process.communicate(timeout=60) and process.returncode for process in processes] == [0, 0, 0]
    with Store.open(path) as store:
        assert len(store.select(Cost)) == 3 * 50 * 2


def test_threads_share_one_store(store, make_run):
    errors = []

    def work(name):
        try:
            for number in range(20):
                store.add(make_run(f"{name}_{number}"))
                store.select(Cost)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.select(type(make_run()))) == 80


def test_a_full_disk_is_said_and_loses_nothing(tmp_path, make_run):
    path = tmp_path / "doorstep.db"
    with Store.open(path) as store:
        store.add(make_run("kept"))

    def shrink(connection, _record):
        connection.execute("PRAGMA max_page_count=1")  # SQLite takes the file's present size

    sa.event.listen(sa.Engine, "connect", shrink)
    try:
        with Store.open(path) as store, pytest.raises(StoreError, match=r"disk is full .* Free some space"):
            store.add(*[make_run(f"run_{number}", error="x" * 1000) for number in range(1000)])
    finally:
        sa.event.remove(sa.Engine, "connect", shrink)
    with Store.open(path) as store:
        assert [run.run_id for run in store.select(type(make_run()))] == ["kept"]


def test_a_locked_file_is_said(tmp_path, make_run, monkeypatch):
    monkeypatch.setattr("doorstep.store.database.LOCK_TIMEOUT_S", 0.1)
    path = tmp_path / "doorstep.db"
    with Store.open(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="Another process was writing"):
            store.add(make_run())


def test_a_file_of_another_kind_is_said(tmp_path):
    path = tmp_path / "doorstep.db"
    path.write_bytes(b"This is a letter, not a database. " * 100)
    with pytest.raises(StoreError, match="not a database of Doorstep"):
        Store.open(path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Give a data folder where you may write"):
        Store.open(tmp_path / "file" / "doorstep.db")


def test_a_newer_schema_is_said(tmp_path):
    path = tmp_path / "doorstep.db"
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO migration VALUES ('m999_future', 0)")
        connection.commit()
    with pytest.raises(StoreError, match=r"newer Doorstep .*m999_future"):
        Store.open(path)


def tables(where) -> dict:
    """The columns and indexes of a database, as it tells them itself."""
    engine = database.connect(where)
    inspector = sa.inspect(engine)
    found = {
        table: (
            {column["name"]: (str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)},
            {index["name"]: index["column_names"] for index in inspector.get_indexes(table)},
        )
        for table in inspector.get_table_names()
    }
    engine.dispose()
    return found


def make_old(where) -> None:
    """Make a database as the first release made it, with a call."""
    engine = database.connect(where)
    with engine.begin() as connection:
        for statement in Path(__file__).with_name("schema_m001.sql").read_text("utf-8").split(";\n"):
            if statement:
                connection.execute(sa.text(_in_words_of(engine, statement)))
        connection.execute(sa.text("INSERT INTO migration VALUES ('m001_first', 1)"))
        connection.execute(
            sa.text(
                "INSERT INTO call (call_id, dialect, requested_model, served_model, provider, sampling, stream, "
                "started_us, ended_us, status_code, gaps) "
                "VALUES ('old', 'openai.chat', 'm', 'm', 'p', '{}', TRUE, 1, 2, 200, '[]')"
            )
        )
    engine.dispose()


def _in_words_of(engine, statement: str) -> str:
    if engine.dialect.name == "sqlite":
        return statement
    return statement.replace("BLOB", "BYTEA").replace("DOUBLE", "DOUBLE PRECISION")


def test_an_older_schema_is_brought_up_to_date(new_database):
    old, fresh = new_database(), new_database()
    make_old(old)
    Store.open(fresh).close()
    for _ in range(2):
        with Store.open(old) as store:
            call = store.get(Call, "old")
    assert (call.stream, call.units, call.cached, call.customer) == (True, {}, False, None)
    assert tables(old) == tables(fresh)
