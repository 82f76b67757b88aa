"""The record's promises: what goes in comes out, rows never change, spans join, corrections supersede."""

import struct
from pathlib import Path

import msgspec
import pytest
from any_record import records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doorstep import ids
from doorstep.errors import StoreError, UsageError
from doorstep.store import Store
from doorstep.store.schema import key_of
from doorstep.store.views import concatenate, current, grades_of, tokens_of
from doorstep.types import RECORDS, Dataset, DatasetItem, Grade, Mode, Run, Split, TokenSpan, TrainingStep

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", RECORDS)
@quick
@given(data=st.data())
def test_what_goes_in_comes_out(kind, data, tmp_path_factory):
    record = data.draw(records(kind))
    with Store.open(tmp_path_factory.mktemp("store") / "doorstep.db") as store:
        store.add(record)
        store.add(record)
        assert store.get(kind, key_of(record)) == record
        assert store.select(kind) == [record]


def test_unknown_stays_unknown(store, make_run):
    store.add(make_run(confidence=None), make_run("run_2", confidence=0.0))
    assert [run.confidence for run in store.select(Run)] == [None, 0.0]


def test_a_row_never_changes(store, make_run):
    store.add(make_run())
    with pytest.raises(StoreError, match="run run_1 is stored already with other values"):
        store.add(make_run("run_9"), make_run(variant="other"))
    assert store.select(Run) == [make_run()]  # the transaction is whole or nothing


def test_two_different_rows_under_one_key_in_one_transaction_are_refused(store, make_run):
    with pytest.raises(StoreError, match="stored already"):
        store.add(make_run(), make_run(variant="other"), make_run())
    assert store.select(Run) == []


def test_a_refused_record_leaves_nothing(store, make_run, make_span):
    with pytest.raises(StoreError, match="exact by definition"):
        store.add(make_run(), make_span("s1", 0, [1], [-0.5], exact=False))
    assert store.select(Run) == []


@pytest.mark.parametrize("changes", [{"logprobs": None}, {"logprobs": b"\0" * 8}, {"ids": b"\0\0\0"}])
def test_one_log_probability_per_sampled_token(store, make_span, changes):
    with pytest.raises(StoreError, match="was refused"):
        store.add(msgspec.structs.replace(make_span("s1", 0, [1], [-0.5]), **changes))


@quick
@given(parts=st.lists(st.lists(st.integers(0, 2**31 - 1)), max_size=5), seed=st.randoms())
def test_spans_join_to_the_ids_of_the_call(parts, seed):
    spans = [
        TokenSpan(
            span_id=str(seq),
            call_id="c",
            run_id=None,
            seq=seq,
            ids=struct.pack(f"<{len(part)}i", *part),
            logprobs=struct.pack(f"<{len(part)}f", *[-1.0] * len(part)) if seq % 2 else None,
            exact=True,
            sampled=bool(seq % 2),
        )
        for seq, part in enumerate(parts)
    ]
    seed.shuffle(spans)
    tokens = concatenate(spans)
    assert tokens.ids == [token for part in parts for token in part]
    assert tokens.logprobs == [-1.0 if seq % 2 else None for seq, part in enumerate(parts) for _ in part]


def test_spans_of_a_call_come_from_the_store(store, make_span):
    store.add(make_span("b", 0, [1, 2]), make_span("a", 1, [3], [-0.25]), make_span("c", 0, [9], call_id="other"))
    tokens = tokens_of(store, "call_1")
    assert (tokens.ids, tokens.logprobs) == ([1, 2, 3], [None, None, -0.25])


def test_a_correction_supersedes(store, make_grade):
    store.add(make_grade("g1", 0.0, at_us=5), make_grade("g2", 1.0, at_us=3, supersedes="g1"))
    assert [grade.grade_id for grade in grades_of(store, "run_1")] == ["g2"]


@quick
@given(times=st.lists(st.integers(0, 9), min_size=1, max_size=6), seed=st.randoms())
def test_the_newest_grade_of_a_name_counts_in_any_order(times, seed):
    grades = [
        Grade(grade_id=f"g{i}", run_id="r", name="exact", value=1.0, source="code", grader_version="1", at_us=at)
        for i, at in enumerate(times)
    ]
    newest = max(grades, key=lambda grade: (grade.at_us, grade.grade_id))
    seed.shuffle(grades)
    assert current(grades) == [newest]


def test_an_unknown_grade_says_why(store, make_grade):
    with pytest.raises(StoreError, match="says why"):
        store.add(make_grade("g1", None))
    store.add(make_grade("g1", None, why="judge timed out"))
    assert store.select(Grade)[0].value is None


def test_not_a_number_is_refused(store):
    step = TrainingStep(step_id="s", training_run="t", stage="sft", step=1, metrics={"loss": float("nan")}, at_us=1)
    with pytest.raises(StoreError, match="NaN or infinity"):
        store.add(step)


def test_lone_surrogates_of_a_model_are_kept(store, make_run):
    store.add(make_run(output={"answer": "\ud800"}))
    assert store.get(Run, "run_1").output == {"answer": "\ud800"}
    with pytest.raises(StoreError, match="could not be read or written"):
        store.add(make_run("run_2", error="\ud800"))


def test_bodies_are_kept_by_digest(store):
    body = b"{}" * 1000
    store.add(blobs={ids.digest(body): body})
    store.add(blobs={ids.digest(body): body})
    assert store.blob(ids.digest(body)) == body
    assert store.blob("0") is None
    with pytest.raises(StoreError, match="its bytes have the digest"):
        store.add(blobs={"0": body})


def test_select_by_fields_order_time_and_limit(store, make_run):
    runs = [make_run(f"run_{i}", started_us=10 - i, evaluation_id="e" if i < 3 else None) for i in range(5)]
    store.add(*runs)
    assert [run.run_id for run in store.select(Run, evaluation_id="e", order_by="started_us")] == [
        "run_2",
        "run_1",
        "run_0",
    ]
    assert [run.run_id for run in store.select(Run, evaluation_id=None)] == ["run_3", "run_4"]
    assert [run.run_id for run in store.select(Run, mode=Mode.PROD, order_by="-started_us", limit=1)] == ["run_0"]
    assert [run.run_id for run in store.select(Run, since=9)] == ["run_0", "run_1"]
    assert store.select_in(Run, "run_id", {"run_4", "run_1", "absent"}) == [runs[1], runs[4]]


def test_a_wrong_field_is_the_callers_error(store):
    with pytest.raises(UsageError, match="run has no field 'colour'"):
        store.select(Run, colour="red")
    with pytest.raises(UsageError, match="no time of their own"):
        store.select(DatasetItem, since=1)


def test_many_rows_pass_the_limits_of_one_statement(store):
    items = [
        DatasetItem(dataset_id="ds", task_id=f"t{i}", task_digest=f"d{i}", split=Split.TRAIN, cluster="c")
        for i in range(1200)
    ]
    sealed = Dataset(
        dataset_id="ds", workflow="orders", purpose="improve", digest="x", created_us=0, counts={"train": 1200}
    )
    store.add(sealed, *items)
    store.add(sealed, *items)
    assert len(store.select(DatasetItem, dataset_id="ds")) == 1200
    assert len(store.select_in(DatasetItem, "task_id", {item.task_id for item in items})) == 1200


def test_a_store_opens_again(tmp_path: Path, make_run):
    for name in ("run_1", "run_2"):
        with Store.open(tmp_path / "deep" / "doorstep.db") as store:
            store.add(make_run(name))
    with Store.open(tmp_path / "deep" / "doorstep.db") as store:
        assert len(store.select(Run)) == 2
