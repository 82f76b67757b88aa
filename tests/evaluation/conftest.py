from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from doorstep import ids
from doorstep.store import Store
from doorstep.types import Call, Mode, Run, RunStatus
from doorstep.workflows.taskset import Task, task_digest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "doorstep.db") as opened:
        yield opened


@pytest.fixture
def tasks() -> list[Task]:
    return [Task(task_id=f"t{i}", digest=task_digest(f"{i}"), item=f"{i}", expected=f"{i}") for i in range(20)]


class RuleRunner:
    """A runner whose output is the task's input, or what ``rule`` says; ``asked`` is what it was given."""

    def __init__(self, evaluation_id: str, **rule: RunStatus | BaseException) -> None:
        self.evaluation_id, self.rule = evaluation_id, rule
        self.asked: list[str] = []

    async def run(self, task: Task) -> Run:
        self.asked.append(task.task_id)
        status = self.rule.get(task.task_id, RunStatus.OK)
        if isinstance(status, BaseException):
            raise status
        return make_run(task, self.evaluation_id, status=status, output=task.item if status is RunStatus.OK else None)


def make_run(task: Task, evaluation_id: str, **changes: Any) -> Run:
    now = ids.now_us()
    values = {
        "run_id": ids.new_id("run"),
        "workflow": "orders",
        "variant": "base",
        "mode": Mode.EVAL,
        "task_id": task.task_id,
        "task_digest": task.digest,
        "status": RunStatus.OK,
        "started_us": now,
        "ended_us": now + 1000,
        "evaluation_id": evaluation_id,
    }
    return Run(**(values | changes))


def make_call(run: Run, **changes: Any) -> Call:
    values = {
        "call_id": ids.new_id("call"),
        "run_id": run.run_id,
        "dialect": "openai.chat",
        "requested_model": "m",
        "served_model": "m",
        "provider": "p",
        "started_us": run.started_us,
        "ended_us": run.ended_us,
        "input_tokens": 10,
        "output_tokens": 3,
        "cost_microusd": 7,
    }
    return Call(**(values | changes))


@pytest.fixture
def runner() -> type[RuleRunner]:
    return RuleRunner


@pytest.fixture
def run_of():
    return make_run


@pytest.fixture
def call_of():
    return make_call
