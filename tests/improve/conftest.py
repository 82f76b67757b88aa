"""A workflow that a table can learn: ``17 red`` is ``fox``; the base says ``fox`` to everything."""

import gc
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from improving_door import WordRenderer, improving
from training_door import connected

from doorstep.improve.ladder import Services
from doorstep.improve.plan import Plan, RlPlan, SftPlan
from doorstep.store import Store
from doorstep.types import Split
from doorstep.workflows.taskset import Taskset, seal
from doorstep.workflows.workflow import Workflow, load_workflow

os.environ["TINKER_TELEMETRY"] = "0"

ANIMALS = {"red": "fox", "green": "frog", "blue": "whale", "black": "crow"}


@pytest.fixture
def renderer() -> WordRenderer:
    return WordRenderer()


@pytest.fixture
def workflow(tmp_path: Path) -> Workflow:
    folder = tmp_path / "workflows" / "animals"
    folder.mkdir(parents=True)
    (folder / "workflow.py").write_text("MAX_TOKENS = 4\n")
    colours = list(ANIMALS)
    records = [{"input": f"{i} {colours[i % 4]}", "expected": ANIMALS[colours[i % 4]]} for i in range(160)]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_workflow(folder)


@pytest.fixture
def shuffled(workflow: Workflow) -> Workflow:
    """The same workflow with its answers dealt out anew."""
    records = [json.loads(line) for line in workflow.records.read_text().splitlines()]
    answers = [record["expected"] for record in records]
    random.Random(0).shuffle(answers)
    dealt = [record | {"expected": answer} for record, answer in zip(records, answers, strict=True)]
    workflow.records.write_text("".join(json.dumps(record) + "\n" for record in dealt))
    return workflow


@pytest.fixture
def sealed(workflow: Workflow) -> Taskset:
    return seal("animals", workflow.records)


@pytest.fixture
def plan(workflow: Workflow, tmp_path: Path) -> Plan:
    return Plan(
        job_id="job_1",
        workflow="animals",
        folder=str(workflow.folder),
        workflow_version=workflow.version,
        base="tiny",
        base_digest="d" * 64,
        dataset_id="ds",
        dataset_digest="x",
        checkpoint_every=3,
        sft=SftPlan(epochs=1, batch=16, learning_rate=20.0),
        rl=RlPlan(steps=5, prompts=8, samples=4, learning_rate=8.0),
        created_us=1,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "doorstep.db") as opened:
        yield opened


@pytest.fixture
def url(tmp_path: Path, store: Store) -> Iterator[str]:
    with improving(tmp_path / "data", store) as address:
        yield address
        gc.collect()  # the SDK leaves a connection open, which complains here, where the tests expect it


@pytest.fixture
def service(url: str) -> Iterator[Any]:
    with connected(url) as client:
        yield client


@pytest.fixture
def services(url: str, store: Store, renderer: WordRenderer) -> Services:
    return Services(
        url=url,
        key="tml-any",
        store=store,
        renderer=renderer,
        base="tiny",
        base_digest="d" * 64,
        max_context=16,
        cpu_clock=time.process_time,
        core_hour_usd=0.05,
    )


class Heard:
    """A listener that stops the work where it is told to; ``steps`` and ``rungs`` are what it heard."""

    def __init__(self, stop: Callable[[str, int], bool] = lambda what, count: False) -> None:
        self.stop = stop
        self.steps: list[tuple[str, int]] = []
        self.rungs: list[str] = []
        self.unusable: list[str] = []

    def evaluation(self, name: str, split: Split) -> Callable[[int, int], None]:
        return lambda done, of: self._hear(f"{name}/{split}", done)

    def step(self, stage: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        self.steps.append((stage, step))
        self._hear(stage, step)

    def left_out(self, records: Sequence[str]) -> None:
        self.unusable = list(records)

    def rung(self, rung: Any) -> None:
        self.rungs.append(rung.name)

    def _hear(self, what: str, count: int) -> None:
        if self.stop(what, count):
            raise Stopped


class Stopped(Exception):
    pass


@pytest.fixture
def heard() -> type[Heard]:
    return Heard


@pytest.fixture
def stopped() -> type[Stopped]:
    return Stopped
