"""The ladder of an improvement: measure the base, train, measure each rung, and let the gate decide.

Rungs are compared on the same sealed held-out split. Which rung becomes the candidate, and how its
confidence is calibrated, is decided on the dev split alone.
"""

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol

import msgspec
import tinker

from doorstep.errors import ProviderError, UsageError
from doorstep.evaluation.evaluate import await_calls, grades_of, summarise
from doorstep.evaluation.rollout import Progress as RollOutProgress
from doorstep.evaluation.rollout import roll_out
from doorstep.fetch import fetch
from doorstep.grading.calibration import Calibration, fit
from doorstep.grading.graders import CodeGrader
from doorstep.improve.examples import Renderer, examples
from doorstep.improve.outcome import Outcome, Rung
from doorstep.improve.plan import Job
from doorstep.improve.stages import Rl, Sft, Stage, StepListener
from doorstep.improve.training_run import TrainingRun
from doorstep.routing.decisions import decide_and_store
from doorstep.routing.gate import Plan as GatePlan
from doorstep.store import Store
from doorstep.types import Cost, Decision, Mode, ModelVersion, Run, RunStatus, Split
from doorstep.workflows.client import ModelClient
from doorstep.workflows.runner import Runner
from doorstep.workflows.taskset import Taskset, TrainingSet
from doorstep.workflows.workflow import Workflow

BASE = "base"
MAX_MISSING = 0.05  # share of records without an answer above which the gate would not decide anyway


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """What a ladder works with, all reached from outside: addresses, the record, and two clocks."""

    url: str  # of the running Doorstep
    key: str  # that it accepts
    store: Store
    renderer: Renderer
    base: str  # name of the base model, as the gateway and the training service know it
    base_digest: str
    max_context: int
    cpu_clock: Callable[[], float]  # CPU seconds used by Doorstep so far
    core_hour_usd: float


class Listener(Protocol):
    """Hears of progress."""

    def evaluation(self, name: str, split: Split) -> RollOutProgress:
        """Return the progress function of an evaluation that begins."""
        ...

    def step(self, stage: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Hear that one training step is done."""
        ...

    def rung(self, rung: Rung) -> None:
        """Hear that a rung was measured."""
        ...

    def left_out(self, records: Sequence[str]) -> None:
        """Hear which training records cannot be used, each with the reason."""
        ...


class Ladder:
    """One improvement from its plan to its decision. Everything done is on disk; running it again goes on."""

    def __init__(
        self,
        job: Job,
        workflow: Workflow,
        taskset: Taskset,
        services: Services,
        listener: Listener,
        compare: Sequence[str] = (),
    ) -> None:
        _check_unchanged(job, workflow, taskset, services)
        self._job = job
        self._workflow = workflow
        self._taskset = taskset
        self._services = services
        self._listener = listener
        self._compare = compare
        self._grader = CodeGrader(workflow.grade)

    def climb(self) -> Outcome:
        """Measure the base, train the stages, measure them, choose, and decide."""
        self._services.store.add(self._taskset.dataset, *self._taskset.items)
        rungs = [self._measure(BASE, self._services.base)]
        paths, left_out = self._train()
        rungs += [self._measure(name, path) for name, path in paths.items()]
        rungs += [self._measure(model, model) for model in self._compare]
        chosen, calibration = self._choose(paths)
        candidate = self._model_version(chosen, paths[chosen], calibration)
        decision = self._decide(candidate)
        return Outcome(rungs=rungs, candidate=candidate, decision=decision, calibration=calibration, left_out=left_out)

    def _train(self) -> tuple[dict[str, str], list[str]]:
        services = self._services
        data, left_out = examples(TrainingSet(self._taskset), self._workflow, services.renderer, services.max_context)
        if not data:
            raise UsageError(f"No training record can be used. The first says: {left_out[0]}")
        if left_out:
            self._listener.left_out(left_out)
        stages: Sequence[Stage] = (
            Sft(self._job.plan, data),
            Rl(self._job.plan, data, self._workflow, services.renderer, self._grader),
        )
        rest = tinker.RestClient(base_url=services.url, api_key=services.key)
        listener: StepListener = self._listener.step
        with tinker.ServiceClient(base_url=services.url, api_key=services.key) as service:
            run = TrainingRun(self._job, service, rest, services.store, cpu_clock=services.cpu_clock, listener=listener)
            return run.train(stages), left_out

    def _measure(self, name: str, model: str) -> Rung:
        began = self._services.cpu_clock()
        runs = self._roll_out(name, model, Split.HELD_OUT)
        await_calls(self._services.store, runs)
        self._keep_serving_cost(name, self._services.cpu_clock() - began)
        progress = self._job.progress()
        cpu = progress.cpu_seconds.get(name, 0.0)
        evaluation = summarise(self._services.store, self._evaluation_id(name, Split.HELD_OUT), runs)
        rung = Rung(
            name=name,
            model=model,
            evaluation=evaluation,
            seconds=round(progress.seconds.get(name, 0.0), 2),
            cpu_seconds=round(cpu, 2),
            cost_usd=cpu / 3600 * self._services.core_hour_usd,
            serving_cpu_seconds=round(progress.serving_cpu_seconds[name], 3),
        )
        self._listener.rung(rung)
        return rung

    def _keep_serving_cost(self, name: str, seconds: float) -> None:
        """Add to what answering cost so far: a measurement that was killed goes on, and so does its cost."""
        progress = self._job.progress()
        total = progress.serving_cpu_seconds.get(name, 0.0) + seconds
        self._job.save(
            msgspec.structs.replace(progress, serving_cpu_seconds=progress.serving_cpu_seconds | {name: total})
        )

    def _roll_out(self, name: str, model: str, split: Split) -> list[Run]:
        evaluation_id = self._evaluation_id(name, split)

        async def work() -> list[Run]:
            async with ModelClient(self._services.url, self._services.key) as client:
                runner = Runner(
                    client, self._workflow, variant=name, model=model, mode=Mode.EVAL, evaluation_id=evaluation_id
                )
                return await roll_out(
                    self._services.store,
                    runner,
                    self._taskset.tasks[split],
                    evaluation_id,
                    grader=self._grader,
                    progress=self._listener.evaluation(name, split),
                )

        runs = asyncio.run(work())
        failed = [run for run in runs if run.status is RunStatus.INFRA_ERROR]
        if len(failed) > MAX_MISSING * len(runs):
            raise ProviderError(
                f"{model} gave no answer to {len(failed)} of {len(runs)} records ({failed[0].error}). What is done is "
                "kept: see that the model answers, then go on with --resume."
            )
        return runs

    def _choose(self, paths: dict[str, str]) -> tuple[str, Calibration]:
        """Take the stage that is best on dev (the later one when equal) and calibrate its confidence there."""
        scored: list[tuple[float, int, str, Calibration]] = []
        for order, (name, path) in enumerate(paths.items()):
            runs = self._roll_out(name, path, Split.DEV)
            grades = grades_of(self._services.store, runs)
            known = [
                (run.confidence, grades[run.run_id] == 1.0)
                for run in runs
                if run.confidence is not None and run.run_id in grades
            ]
            calibration = fit([confidence for confidence, _ in known], [right for _, right in known])
            scored.append((sum(grades.values()) / max(1, len(grades)), order, name, calibration))
        _, _, name, calibration = max(scored, key=lambda entry: entry[:2])
        return name, calibration

    def _model_version(self, stage: str, path: str, calibration: Calibration) -> ModelVersion:
        plan = self._job.plan
        digest = adapter_digest(self._services.url, self._services.key, path)
        version = ModelVersion(
            model_id=f"model_{plan.job_id.removeprefix('job_')}",
            workflow=plan.workflow,
            variant=stage,
            base=plan.base,
            base_digest=self._services.base_digest,
            path=path,
            adapter_digest=digest,
            recipe={"plan": msgspec.to_builtins(plan), "calibration": msgspec.to_builtins(calibration)},
            dataset_id=plan.dataset_id,
            parent=None,
            created_us=plan.created_us,
        )
        self._services.store.add(version, *self._costs(version))
        return version

    def _costs(self, version: ModelVersion) -> list[Cost]:
        progress = self._job.progress()
        return [
            Cost(
                cost_id=f"cost_{version.model_id}_{stage}",
                scope="train",
                ref=version.model_id,
                workflow=version.workflow,
                quantity=seconds,
                unit="cpu_second",
                amount_microusd=round(seconds / 3600 * self._services.core_hour_usd * 1e6),
                basis="estimated",
                at_us=version.created_us,
            )
            for stage, seconds in progress.cpu_seconds.items()
        ]

    def _decide(self, candidate: ModelVersion) -> Decision:
        return decide_and_store(
            self._services.store,
            GatePlan(),
            workflow=self._workflow.name,
            champion=(BASE, self._evaluation_id(BASE, Split.HELD_OUT)),
            candidate=(candidate.variant, self._evaluation_id(candidate.variant, Split.HELD_OUT)),
            dataset_id=self._taskset.dataset.dataset_id,
        )

    def _evaluation_id(self, name: str, split: Split) -> str:
        return f"{self._job.plan.job_id}/{name}/{split.value}"


def _check_unchanged(job: Job, workflow: Workflow, taskset: Taskset, services: Services) -> None:
    """Refuse to go on with other records, another workflow file or another base than the plan was made for."""
    plan = job.plan
    if plan.dataset_digest != taskset.dataset.digest or plan.workflow_version != workflow.version:
        raise UsageError(
            f"The records or workflow.py of '{plan.workflow}' changed since this improvement was planned. "
            f"Start a new one: doorstep improve {plan.workflow}"
        )
    if plan.base_digest != services.base_digest:
        raise UsageError(
            f"This improvement was planned on the base '{plan.base}' with the weights {plan.base_digest[:12]}, but "
            f"Doorstep runs on '{services.base}' with {services.base_digest[:12]}. Serve that base again, or start a "
            f"new improvement: doorstep improve {plan.workflow}"
        )


def adapter_digest(url: str, key: str, path: str) -> str:
    """Return the content digest of trained weights, as the training service states it."""
    body, headers = {"tinker_path": path}, {"x-api-key": key}
    answer = fetch(f"{url}/api/v1/weights_info", body, headers=headers)
    if answer.status != HTTPStatus.OK:
        raise ProviderError(f"the training service does not say what {path} is: HTTP {answer.status}: {answer.text}")
    return str(answer.json().get("digest") or "unknown")
