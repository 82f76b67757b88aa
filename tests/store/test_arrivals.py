"""Rows are read in the order in which they came, on every database, and none is missed."""

import sqlalchemy as sa

from doorstep.store import Store, arrivals
from doorstep.store.schema import TABLES, to_row
from doorstep.types import Run


def ids_of(rows):
    return [row.run_id for row in rows]


def test_a_row_that_comes_late_is_read_late(store, make_run):
    store.add(make_run("run_b"))
    first, place = arrivals.page(store, Run, arrivals.BEGINNING, 10)
    store.add(make_run("run_a"))
    second, place = arrivals.page(store, Run, place, 10)
    assert (ids_of(first), ids_of(second)) == (["run_b"], ["run_a"])
    assert arrivals.page(store, Run, place, 10)[0] == []


def test_pages_together_are_everything(store, make_run):
    for number in range(7):
        store.add(make_run(f"run_{number}"))
    found, place = [], arrivals.BEGINNING
    while (page := arrivals.page(store, Run, place, 2))[0]:
        found += ids_of(page[0])
        place = page[1]
    assert found == [f"run_{number}" for number in range(7)]


def test_who_begins_at_the_newest_place_reads_only_what_comes_after(store, make_run):
    store.add(make_run("run_1"))
    place = arrivals.newest(store, Run)
    store.add(make_run("run_2"))
    assert ids_of(arrivals.page(store, Run, place, 10)[0]) == ["run_2"]


def test_what_is_being_written_is_not_passed_over(postgres, make_run):
    where = postgres.database()
    with Store.open(where) as store, Store.open(where) as other, other._writing() as slow:
        slow.execute(sa.insert(TABLES[Run]).values(to_row(make_run("run_slow"))))
        store.add(make_run("run_quick"))
        early, place = arrivals.page(store, Run, arrivals.BEGINNING, 10)
        slow.commit()
        late, _ = arrivals.page(store, Run, place, 10)
        assert ids_of(early + late) == ["run_slow", "run_quick"]


def test_an_older_database_learns_the_order(postgres, make_run):
    where = postgres.database()
    with Store.open(where) as store:
        store.add(make_run("run_1"))
        with store._writing() as connection:
            connection.execute(sa.text("ALTER TABLE run DROP COLUMN arrival"))
            connection.execute(sa.text("ALTER TABLE call DROP COLUMN arrival"))
            connection.execute(sa.text("DELETE FROM migration WHERE name = 'm003_arrival'"))
    with Store.open(where) as store:
        store.add(make_run("run_2"))
        assert ids_of(arrivals.page(store, Run, arrivals.BEGINNING, 10)[0]) == ["run_1", "run_2"]
