"""A taskset: the records of a workflow, split by time into train, dev and held-out, and sealed under a digest.

The newest records are held out, since the next month is what the model will meet; a record without a time counts
as older than all that have one. Near-duplicates (the same words, see ``cluster_of``) form a cluster, and a cluster
never straddles splits: it goes where its oldest record goes. Training data can only be had through ``TrainingSet``,
which refuses a held-out record.
"""

import re
import unicodedata
from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from doorstep import ids
from doorstep.errors import BadInput, HeldOutLeak, UsageError
from doorstep.types import Dataset, DatasetItem, Split

HELD_OUT_SHARE = 0.25
HELD_OUT_MOST = 400  # an interval of about ± 4 points; more only makes each measurement longer
DEV_SHARE = 0.1
DEV_MOST = 200
MIN_RECORDS = 20


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One input with what was really done about it. ``expected`` is ``None`` for new work."""

    task_id: str
    digest: str  # of the input: the same input is the same task, whatever its id
    item: Any
    expected: Any = None
    at: str | None = None
    customer: str | None = None


class Taskset(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed taskset: tasks by split, and the rows that the store keeps of it."""

    dataset: Dataset
    items: list[DatasetItem]
    tasks: dict[Split, list[Task]]
    problems: list[str]  # records that were left out, and why

    @property
    def not_for_training(self) -> frozenset[str]:
        """Digests of all tasks that must never be trained on, and the clusters of their near-duplicates."""
        kept_back = [item for item in self.items if item.split != Split.TRAIN]
        return frozenset(key for item in kept_back for key in (item.task_digest, item.cluster))


class TrainingSet:
    """The only door to training: tasks that are in the train split of a sealed taskset, checked by digest."""

    def __init__(self, taskset: Taskset, tasks: Sequence[Task] | None = None) -> None:
        self.dataset = taskset.dataset
        self.tasks = list(taskset.tasks[Split.TRAIN] if tasks is None else tasks)
        forbidden = taskset.not_for_training
        leaked = [
            task.task_id
            for task in self.tasks
            if forbidden & {task.digest, task_digest(task.item), cluster_of(task.item)}
        ]
        if leaked:
            raise HeldOutLeak(
                f"{len(leaked)} held-out record(s) reached training, first {leaked[0]}. Nothing was trained. "
                "Train on the taskset's train split only."
            )


def task_digest(item: Any) -> str:
    """Return the digest of an input."""
    return ids.digest(item)


def read_records(path: Path) -> tuple[list[Task], list[str]]:
    """Read ``records.jsonl``; a record that cannot be used is reported and left out, the rest goes on."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file. One JSON object a line, with 'input' and 'expected'.")
    tasks: list[Task] = []
    problems: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_bytes().removeprefix(BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            task = _task(line, f"{path.name}:{number}", number)
            if task.task_id in seen:
                raise BadInput(f"{path.name}:{number}", f"id '{task.task_id}' was used before; the first is kept")
        except BadInput as error:
            problems.append(str(error))
            continue
        seen.add(task.task_id)
        tasks.append(task)
    return tasks, problems


def seal(workflow: str, path: Path) -> Taskset:
    """Read, split and seal the records of a workflow. The same file gives the same digest, always."""
    tasks, problems = read_records(path)
    if len(tasks) < MIN_RECORDS:
        raise UsageError(
            f"{path}: {len(tasks)} usable record(s); at least {MIN_RECORDS} are needed. {'; '.join(problems[:3])}"
        )
    splits = split_by_time(tasks)
    clusters = {task.task_id: cluster_of(task.item) for task in tasks}
    # All that the stored rows say: other rows are another dataset.
    rows = [(task, splits[task.task_id].value, clusters[task.task_id]) for task in tasks]
    manifest = ids.digest([workflow, rows])
    dataset_id = f"ds_{manifest[:24]}"
    by_split = {split: [task for task in tasks if splits[task.task_id] is split] for split in Split}
    if not all(by_split.values()):
        raise UsageError(
            f"{path}: {len(tasks)} records are only {len(set(clusters.values()))} different ones, too few to train on "
            "some and hold others out. Add records that differ."
        )
    dataset = Dataset(
        dataset_id=dataset_id,
        workflow=workflow,
        purpose="improve",
        digest=manifest,
        created_us=0,  # a seal has no time of its own: the same records are the same dataset
        counts={split.value: len(part) for split, part in by_split.items()},
    )
    items = [
        DatasetItem(
            dataset_id=dataset_id,
            task_id=task.task_id,
            task_digest=task.digest,
            split=splits[task.task_id],
            cluster=clusters[task.task_id],
            customer=task.customer,
            at=task.at,
        )
        for task in tasks
    ]
    return Taskset(dataset=dataset, items=items, tasks=by_split, problems=problems)


def split_by_time(tasks: Sequence[Task]) -> dict[str, Split]:
    """Give each task id its split: the newest quarter (at most 400) held out, the tenth before (at most 200) dev."""
    ordered = sorted(enumerate(tasks), key=lambda pair: (_moment(pair[1].at), pair[0]))
    count = len(ordered)
    held_out_from = count - min(HELD_OUT_MOST, round(count * HELD_OUT_SHARE))
    dev_from = held_out_from - min(DEV_MOST, round(count * DEV_SHARE))
    home: dict[str, Split] = {}
    splits: dict[str, Split] = {}
    for place, (_, task) in enumerate(ordered):
        by_time = Split.HELD_OUT if place >= held_out_from else Split.DEV if place >= dev_from else Split.TRAIN
        splits[task.task_id] = home.setdefault(cluster_of(task.item), by_time)
    return splits


def cluster_of(item: Any) -> str:
    """Return the cluster of near-duplicates: in each field the same letters and digits in the same order.

    Case, spaces, punctuation and Unicode form do not matter; a typo, another number or another order of words makes
    another cluster. Numbers that are no text count as they are.
    """
    return ids.digest([_squeezed(part) for part in _leaves(item)])[:16]


def _squeezed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = unicodedata.normalize("NFKC", value).casefold()
    return re.sub(r"[\W_]+", "", text) or text


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _leaves(value[key])
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _moment(at: str | None) -> datetime:
    """Return a record's time in UTC, which a time without a zone is taken to be in."""
    if at is None:
        return datetime.min.replace(tzinfo=UTC)
    moment = datetime.fromisoformat(at)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _task(line: bytes, where: str, number: int) -> Task:
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(where, f"not a JSON object in UTF-8: {error}") from None
    if not isinstance(record, dict):
        raise BadInput(where, "a record is a JSON object with 'input' and 'expected'")
    for field in ("input", "expected"):
        if record.get(field) in (None, "", {}):
            raise BadInput(where, f"the record has no '{field}'; it cannot be learned from or graded")
    task_id, at, customer = record.get("id"), record.get("at"), record.get("customer")
    try:
        _moment(at)
    except (ValueError, TypeError):
        raise BadInput(
            where, f"'at' is {at!r}; give an ISO time such as 2026-03-31T14:05:00, or leave it out"
        ) from None
    return Task(
        task_id=str(number if task_id is None else task_id),
        digest=task_digest(record["input"]),
        item=record["input"],
        expected=record["expected"],
        at=at,
        customer=None if customer is None else str(customer),
    )
