"""The command line in this process, and a finished improvement as the commands after it find it."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from doorstep import cli, config
from doorstep.cli.improving import OUTCOME, plan_for
from doorstep.evaluation.evaluate import summarise
from doorstep.grading.calibration import Calibration
from doorstep.improve.outcome import Outcome, Rung
from doorstep.improve.plan import Job
from doorstep.routing.decisions import decide_and_store
from doorstep.routing.gate import Plan
from doorstep.store import Store
from doorstep.types import Call, Cost, Grade, GradeSource, Mode, ModelVersion, Run, RunStatus, Split, TrainingStep
from doorstep.workflows.taskset import Taskset, seal
from doorstep.workflows.workflow import load_workflow

RECORDS = 160  # of which 40 are held out
RIGHT = {"base": 4, "sft": 25, "rl": 37}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def doorstep(monkeypatch, capsys, tmp_path) -> Callable[..., Ended]:
    """Run a command in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DOORSTEP_")]:
        monkeypatch.delenv(name)

    def command(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["doorstep", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return Ended(int(end.value.code or 0), captured.out, " ".join(captured.err.split()))

    return command


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "some.jsonl"
    lines = [{"id": f"r{i}", "input": f"please send {i} crates", "expected": {"qty": i}} for i in range(RECORDS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def improved(doorstep, records) -> Outcome:
    """Store the rows of an improvement of the workflow ``crates``; the gate's decision is a real one."""
    assert doorstep("init", "crates", "--from", str(records)).code == 0
    settings, workflow = config.load(), load_workflow(Path("workflows/crates"))
    taskset = seal("crates", workflow.records)
    job = plan_for(settings, workflow, taskset, seed=3)
    with Store.open(settings.data / "doorstep.db") as store:
        store.add(taskset.dataset, *taskset.items)
        rungs = [_rung(store, job, taskset, name, right) for name, right in RIGHT.items()]
        version = _model(job)
        store.add(version, *_costs(version), *_steps(job))
        decision = decide_and_store(
            store,
            Plan(),
            workflow="crates",
            champion=("base", _evaluation_id(job, "base")),
            candidate=("rl", _evaluation_id(job, "rl")),
            dataset_id=taskset.dataset.dataset_id,
        )
    outcome = Outcome(
        rungs=rungs, candidate=version, decision=decision, calibration=Calibration(raw=[0.5], right=[0.9], n=16)
    )
    (job.folder / OUTCOME).write_bytes(msgspec.json.encode(outcome))
    return outcome


def _evaluation_id(job: Job, name: str) -> str:
    return f"{job.plan.job_id}/{name}/held_out"


def _rung(store: Store, job: Job, taskset: Taskset, name: str, right: int) -> Rung:
    evaluation = _evaluation_id(job, name)
    runs, rows = [], []
    for i, task in enumerate(taskset.tasks[Split.HELD_OUT]):
        run = Run(
            run_id=f"run_{name}_{i}",
            workflow="crates",
            variant=name,
            mode=Mode.EVAL,
            task_id=task.task_id,
            task_digest=task.digest,
            status=RunStatus.OK,
            started_us=1_000_000,
            ended_us=1_020_000,
            evaluation_id=evaluation,
            output=task.expected if i < right else {"qty": "<b>many</b>"},
        )
        grade = Grade(
            grade_id=f"grade_{name}_{i}",
            run_id=run.run_id,
            name="exact",
            value=float(i < right),
            source=GradeSource.CODE,
            grader_version="1",
            at_us=2_000_000,
        )
        call = Call(
            call_id=f"call_{name}_{i}",
            run_id=run.run_id,
            dialect="openai.chat",
            requested_model=name,
            served_model="tiny",
            provider="local",
            started_us=1_000_000,
            ended_us=1_020_000,
            input_tokens=300,
            output_tokens=20,
            cost_microusd=1,
        )
        runs.append(run)
        rows += [run, grade, call]
    store.add(*rows)
    return Rung(
        name=name,
        model=f"tinker://{name}",
        evaluation=summarise(store, evaluation, runs),
        seconds=0.0 if name == "base" else 30.0,
        cpu_seconds=0.0 if name == "base" else 36.0,
        cost_usd=0.0,
        serving_cpu_seconds=7.2,
    )


def _model(job: Job) -> ModelVersion:
    return ModelVersion(
        model_id="model_1",
        workflow="crates",
        variant="rl",
        base="tiny",
        base_digest="b",
        path="tinker://job/weights/rl",
        adapter_digest="a",
        recipe={"plan": msgspec.to_builtins(job.plan)},
        dataset_id=job.plan.dataset_id,
        parent=None,
        created_us=1,
    )


def _costs(version: ModelVersion) -> list[Cost]:
    return [
        Cost(
            cost_id=f"cost_{version.model_id}_{stage}",
            scope="train",
            ref=version.model_id,
            workflow="crates",
            quantity=36.0,
            unit="cpu_second",
            amount_microusd=500,
            basis="estimated",
            at_us=1,
        )
        for stage in ("sft", "rl")
    ]


def _steps(job: Job) -> list[TrainingStep]:
    metrics = {"sft": {"loss": 0.5}, "rl": {"exact": 0.75}}
    return [
        TrainingStep(
            step_id=f"step_{stage}_{step}_{time}",
            training_run=job.plan.job_id,
            stage=stage,
            step=step,
            metrics={name: value / (step + 1) * time for name, value in metrics[stage].items()},
            at_us=time,
        )
        for stage in metrics
        for step in range(3)
        for time in ((1,) if step else (2, 1))  # step 0 was done, killed, and done again
    ]
