"""Records: what is left out, how they are split, and what a seal promises."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import HeldOutLeak, UsageError
from doorstep.store import Store
from doorstep.types import Split
from doorstep.workflows.taskset import (
    Task,
    Taskset,
    TrainingSet,
    cluster_of,
    read_records,
    seal,
    split_by_time,
    task_digest,
)

DAYS = [f"2026-0{1 + i // 28}-{1 + i % 28:02d}" for i in range(80)]


def record(i: int, **changes):
    return {"id": f"r{i}", "input": f"order number {i}", "expected": {"qty": i}, "at": DAYS[i]} | changes


def write(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


@pytest.fixture
def sealed(file: Path) -> Taskset:
    return seal("orders", write(file, [record(i) for i in range(40)]))


def ids_of(taskset: Taskset, split: Split) -> list[str]:
    return [task.task_id for task in taskset.tasks[split]]


def test_the_newest_quarter_is_held_out_and_a_tenth_before_it_is_dev(sealed):
    assert ids_of(sealed, Split.HELD_OUT) == [f"r{i}" for i in range(30, 40)]
    assert ids_of(sealed, Split.DEV) == [f"r{i}" for i in range(26, 30)]
    assert sealed.dataset.counts == {"train": 26, "dev": 4, "held_out": 10}


def test_time_decides_and_not_the_order_in_the_file_or_the_spelling_of_the_zone(file):
    records = [record(i) for i in range(39)] + [record(39, at="2026-01-01T01:00:00+02:00")]
    taskset = seal("orders", write(file, reversed(records)))
    assert "r39" in ids_of(taskset, Split.TRAIN)  # 2025-12-31T23:00Z, the oldest of all
    assert {"r37", "r38"} <= set(ids_of(taskset, Split.HELD_OUT))


def test_records_without_a_time_are_older_than_those_with_one(file):
    records = [record(i) for i in range(30)] + [record(i, at=None) for i in range(30, 40)]
    assert not set(ids_of(seal("orders", write(file, records)), Split.HELD_OUT)) & {f"r{i}" for i in range(30, 40)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "x"}', "no 'expected'"),
        ('{"input": "", "expected": "y"}', "no 'input'"),
        ('{"id": "r1", "input": "x", "expected": "y"}', "id 'r1' was used before"),
        ("[1, 2]", "a record is a JSON object"),
        ("not json", "not a JSON object"),
        ('{"input": "half \\ud83d", "expected": "y"}', "not a JSON object in UTF-8"),
        ('{"input": {"q": NaN}, "expected": "y"}', "not a JSON object"),
        ('{"input": "x", "expected": "y", "at": "31.3.2026"}', "'at' is '31.3.2026'; give an ISO time"),
        ('{"input": "x", "expected": "y", "at": 1700000000}', "give an ISO time"),
        ("[" * 5000, "not a JSON object"),
    ],
)
def test_a_bad_record_is_named_and_the_rest_goes_on(file, line, message):
    write(file, [record(1)])
    with file.open("a") as out:
        out.write(line + "\n\n" + json.dumps(record(2)) + "\n")
    tasks, problems = read_records(file)
    assert [task.task_id for task in tasks] == ["r1", "r2"]
    assert len(problems) == 1
    assert problems[0].startswith("records.jsonl:2: ")
    assert message in problems[0]


def test_bytes_that_are_no_utf8_spoil_their_line_alone(file):
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(record(1)).encode() + b"\n" + '{"input":"fünf"}'.encode("latin-1"))
    tasks, problems = read_records(file)
    assert (len(tasks), len(problems)) == (1, 1)


def test_without_an_id_the_line_number_is_the_id(file):
    tasks, problems = read_records(write(file, [record(i, id=None) for i in range(3)]))
    assert ([task.task_id for task in tasks], problems) == (["1", "2", "3"], [])


def test_too_few_or_too_similar_records_are_said(file):
    with pytest.raises(UsageError, match=r"19 usable record\(s\); at least 20"):
        seal("orders", write(file, [record(i) for i in range(19)]))
    with pytest.raises(UsageError, match="30 records are only 1 different ones"):
        seal("orders", write(file, [record(i, input="the same again") for i in range(30)]))
    with pytest.raises(UsageError, match="no such file"):
        seal("orders", file.with_name("none.jsonl"))


def test_the_same_file_is_the_same_dataset_and_can_be_stored_again(file, sealed, tmp_path):
    again = seal("orders", file)
    assert again == sealed
    with Store.open(tmp_path / "doorstep.db") as store:
        store.add(sealed.dataset, *sealed.items)
        store.add(again.dataset, *again.items)


@given(st.integers(0, 39), st.sampled_from(["id", "input", "expected", "at", "customer"]))
def test_any_change_of_a_record_is_another_dataset(tmp_path_factory, i, field):
    folder = tmp_path_factory.mktemp("seal")
    records = [record(i) for i in range(40)]
    before = seal("orders", write(folder / "a.jsonl", records)).dataset
    records[i][field] = "2026-03-09" if field == "at" else "other"
    after = seal("orders", write(folder / "b.jsonl", records)).dataset
    assert before.dataset_id != after.dataset_id
    assert before.digest != after.digest


def test_a_held_out_record_cannot_be_trained_on(sealed):
    assert len(TrainingSet(sealed).tasks) == 26
    with pytest.raises(HeldOutLeak, match="Nothing was trained"):
        TrainingSet(sealed, sealed.tasks[Split.TRAIN] + sealed.tasks[Split.HELD_OUT][:1])
    with pytest.raises(HeldOutLeak):
        TrainingSet(sealed, sealed.tasks[Split.DEV])


def test_a_held_out_record_under_another_name_or_spelling_is_still_found(sealed):
    task = sealed.tasks[Split.HELD_OUT][0]
    renamed = msgspec.structs.replace(task, task_id="new", digest="forged")
    respelt = msgspec.structs.replace(task, item=task.item.upper() + "!", digest=task_digest(task.item.upper() + "!"))
    for leak in (renamed, respelt):
        with pytest.raises(HeldOutLeak):
            TrainingSet(sealed, [leak])


WORDS = st.text("aäß你 .,-3", min_size=1, max_size=3)
TASKS = st.lists(st.tuples(WORDS, st.none() | st.sampled_from(DAYS)), min_size=4, max_size=40).map(
    lambda pairs: [
        Task(task_id=str(i), digest=task_digest(text), item=text, at=at) for i, (text, at) in enumerate(pairs)
    ]
)


@given(TASKS)
def test_no_cluster_straddles_splits(tasks):
    splits = split_by_time(tasks)
    homes: dict[str, set[Split]] = {}
    for task in tasks:
        homes.setdefault(cluster_of(task.item), set()).add(splits[task.task_id])
    assert all(len(home) == 1 for home in homes.values())


@given(TASKS)
def test_what_is_held_out_was_first_seen_after_all_that_is_trained_on(tasks):
    splits = split_by_time(tasks)
    first: dict[str, str] = {}
    for task in tasks:
        cluster = cluster_of(task.item)
        first[cluster] = min(first.get(cluster, "9"), task.at or "")
    seen = {split: [first[cluster_of(task.item)] for task in tasks if splits[task.task_id] is split] for split in Split}
    assert len(seen[Split.HELD_OUT]) <= round(len(tasks) / 4)
    assert max(seen[Split.TRAIN], default="") <= min(seen[Split.HELD_OUT], default="9")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("3 boxes, please", "3 Boxes please!", True),
        ("Gru\u0308ße", "GRÜSSE", True),
        ("３ boxes", "3 boxes", True),
        ("3 boxes", "4 boxes", False),
        ("👍", "👎", False),
        ({"a": "x", "b": "yz"}, {"a": "xy", "b": "z"}, False),
        ({"x": 1.5}, {"x": 15}, False),
        ({"x": -1}, {"x": 1}, False),
    ],
)
def test_what_counts_as_a_near_duplicate(one, other, same):
    assert (cluster_of(one) == cluster_of(other)) is same
