"""A small workflow in a store: a sealed dataset, evaluations with grades, ready to be decided on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from doorstep.store import Store
from doorstep.types import Dataset, DatasetItem, Grade, GradeSource, Mode, Run, RunStatus, Split

HELD_OUT, TRAIN = 40, 10


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "doorstep.db") as opened:
        items = [_item("ds", f"t{i}", Split.HELD_OUT if i < HELD_OUT else Split.TRAIN) for i in range(HELD_OUT + TRAIN)]
        opened.add(
            Dataset(dataset_id="ds", workflow="orders", purpose="improve", digest="x", created_us=0, counts={}), *items
        )
        yield opened


@pytest.fixture
def item() -> Callable[..., DatasetItem]:
    return _item


@pytest.fixture
def measured(store: Store) -> Callable[..., str]:
    """Store an evaluation in which the first ``right`` held-out tasks are exactly right."""

    def measure(name: str, right: int, **changes: Any) -> str:
        for i in range(HELD_OUT):
            store.add(_run(name, i, **changes), _grade(name, i, float(i < right)))
        return name

    return measure


def _item(dataset_id: str, task_id: str, split: Split) -> DatasetItem:
    return DatasetItem(
        dataset_id=dataset_id, task_id=task_id, task_digest=f"d_{task_id}", split=split, cluster=f"c_{task_id}"
    )


def _run(evaluation: str, i: int, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "run_id": f"run_{evaluation}_{i}",
        "workflow": "orders",
        "variant": evaluation,
        "mode": Mode.EVAL,
        "task_id": f"t{i}",
        "task_digest": f"d_t{i}",
        "status": RunStatus.OK,
        "started_us": 1,
        "ended_us": 2,
        "evaluation_id": evaluation,
    }
    return Run(**(values | changes))


def _grade(evaluation: str, i: int, value: float) -> Grade:
    return Grade(
        grade_id=f"grade_{evaluation}_{i}",
        run_id=f"run_{evaluation}_{i}",
        name="exact",
        value=value,
        source=GradeSource.CODE,
        grader_version="1",
        at_us=3,
    )
