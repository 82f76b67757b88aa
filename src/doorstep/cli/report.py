"""The report of an improvement as values: each figure is computed from stored rows and the improvement's outcome."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from doorstep.cli.improving import decision_report
from doorstep.config import Settings
from doorstep.errors import UsageError
from doorstep.evaluation.evaluate import grades_of
from doorstep.improve.outcome import Outcome, Rung
from doorstep.improve.plan import Job
from doorstep.store import Store
from doorstep.types import Cost, Run, RunStatus, Split, TrainingStep
from doorstep.value.breakeven import BreakEven, break_even
from doorstep.value.ledger import Ledger, ledger
from doorstep.value.prices import MICRO, list_price, price_version
from doorstep.workflows.taskset import Task, seal
from doorstep.workflows.workflow import RECORDS

HOSTED = ("openai/gpt-5-mini", "anthropic/claude-sonnet-4-5", "google/gemini-2.5-flash")
FIGURE_OF = {"sft": "loss", "rl": "exact"}  # what a stage's curve shows
MAX_MISTAKES = 8


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A measured variant: share exactly right on the held-out records with its 95 % interval, and what it took."""

    name: str
    score: float
    low: float
    high: float
    n: int
    missing: int  # held-out records without a grade
    training_seconds: float
    serving_cpu_seconds: float
    cost_per_1000_usd: float | None  # of answering; ``None``: not known
    p50_ms: float
    p95_ms: float


class CostPer1000(msgspec.Struct, frozen=True, kw_only=True):
    """What 1,000 inputs cost: on our own model by its CPU time, on hosted ones the same tokens at list price."""

    own_usd: float
    list_price_usd: dict[str, float | None]  # ``None``: no price, or tokens not known
    core_hour_usd: float
    price_version: str


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """What training cost, by stage and in all."""

    cpu_seconds: float
    usd: float
    stages: dict[str, float]  # CPU seconds


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """One figure per step of a stage."""

    stage: str
    figure: str
    points: list[float]


class Mistake(msgspec.Struct, frozen=True, kw_only=True):
    """A held-out record that the candidate got wrong."""

    task_id: str
    input: Any
    expected: Any
    got: Any
    why: str | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the report says, as JSON and as a page. ``seconds`` is the wall time of each step."""

    workflow: str
    seed: int
    held_out: int
    stages: list[Stage]
    decision: dict[str, Any]
    cost_per_1000: CostPer1000
    seconds: dict[str, float]
    training: Training
    break_even: dict[str, BreakEven]
    curves: list[Curve]
    mistakes: list[Mistake]
    ledger: Ledger
    inbox: dict[str, Any] | None = None


def build(
    store: Store,
    settings: Settings,
    job: Job,
    outcome: Outcome,
    *,
    seconds: dict[str, float] | None = None,
    inbox: dict[str, Any] | None = None,
) -> Report:
    """Put the report of a finished improvement together."""
    candidate = _rung(outcome, outcome.candidate.variant)
    training = _training(store, outcome.candidate.model_id)
    per_1000 = _cost_per_1000(candidate, settings.prices.core_hour_usd)
    return Report(
        workflow=job.plan.workflow,
        seed=job.plan.seed,
        held_out=candidate.evaluation.n + candidate.evaluation.missing,
        stages=[_stage(rung, settings.prices.core_hour_usd) for rung in outcome.rungs],
        decision=decision_report(outcome.decision),
        cost_per_1000=per_1000,
        seconds=seconds or {rung.name: rung.seconds for rung in outcome.rungs if rung.seconds},
        training=training,
        break_even=_break_evens(training, per_1000),
        curves=_curves(store, job.plan.job_id),
        mistakes=_mistakes(store, candidate, _held_out(Path(job.plan.folder), job.plan.workflow)),
        ledger=ledger(store, job.plan.workflow, HOSTED),
        inbox=inbox,
    )


def _rung(outcome: Outcome, name: str) -> Rung:
    return next(rung for rung in outcome.rungs if rung.name == name)


def _stage(rung: Rung, core_hour_usd: float) -> Stage:
    result = rung.evaluation
    own = "/" not in rung.name  # a hosted model is measured under PROVIDER/MODEL, and its calls have a price
    known = _own_per_1000(rung, core_hour_usd) if own else _per_1000(result.cost_usd, _answered(rung))
    return Stage(
        name=rung.name,
        score=result.score,
        low=result.low,
        high=result.high,
        n=result.n,
        missing=result.missing,
        training_seconds=rung.seconds,
        serving_cpu_seconds=rung.serving_cpu_seconds,
        cost_per_1000_usd=known,
        p50_ms=result.p50_ms,
        p95_ms=result.p95_ms,
    )


def _answered(rung: Rung) -> int:
    return rung.evaluation.n + rung.evaluation.missing


def _own_per_1000(rung: Rung, core_hour_usd: float) -> float:
    """Price all CPU time that Doorstep's processes used while they answered, not the engine's alone."""
    return rung.serving_cpu_seconds / 3600 * core_hour_usd / _answered(rung) * 1000


def _per_1000(usd: float | None, n: int) -> float | None:
    return None if usd is None else usd / n * 1000


def _cost_per_1000(candidate: Rung, core_hour_usd: float) -> CostPer1000:
    prices = {model: _list_price(model, candidate) for model in HOSTED}
    return CostPer1000(
        own_usd=_own_per_1000(candidate, core_hour_usd),
        list_price_usd=prices,
        core_hour_usd=core_hour_usd,
        price_version=price_version(),
    )


def _list_price(model: str, rung: Rung) -> float | None:
    provider, _, name = model.partition("/")
    n, result = _answered(rung), rung.evaluation
    if result.input_tokens is None or result.output_tokens is None:
        return None
    amount = list_price(provider, name, result.input_tokens, result.output_tokens, calls=n)
    return _per_1000(None if amount is None else amount / MICRO, n)


def _training(store: Store, model_id: str) -> Training:
    costs = store.select(Cost, ref=model_id, scope="train")
    return Training(
        cpu_seconds=sum(cost.quantity for cost in costs),
        usd=sum(cost.amount_microusd for cost in costs) / MICRO,
        stages={cost.cost_id.rpartition("_")[2]: cost.quantity for cost in costs},
    )


def _break_evens(training: Training, per_1000: CostPer1000) -> dict[str, BreakEven]:
    spent, own = round(training.usd * MICRO), per_1000.own_usd * MICRO / 1000
    return {
        model: break_even(spent, None if usd is None else usd * MICRO / 1000, own)
        for model, usd in per_1000.list_price_usd.items()
    }


def _curves(store: Store, job_id: str) -> list[Curve]:
    """Return the curves; a step that was done again after a kill counts once, as it was done last."""
    steps = {(row.stage, row.step): row for row in store.select(TrainingStep, training_run=job_id, order_by="at_us")}
    curves = []
    for stage, figure in FIGURE_OF.items():
        rows = [row for (name, _), row in sorted(steps.items()) if name == stage]
        if rows:
            curves.append(Curve(stage=stage, figure=figure, points=[row.metrics[figure] for row in rows]))
    return curves


def _held_out(folder: Path, workflow: str) -> Mapping[str, Task]:
    try:
        tasks = seal(workflow, folder / RECORDS).tasks[Split.HELD_OUT]
    except UsageError:  # the records were moved: the figures stand, only the examples cannot be shown
        return {}
    return {task.digest: task for task in tasks}


def _mistakes(store: Store, candidate: Rung, tasks: Mapping[str, Task]) -> list[Mistake]:
    runs = store.select(Run, evaluation_id=candidate.evaluation.evaluation_id)
    grades = grades_of(store, runs)
    wrong = [run for run in runs if grades.get(run.run_id, 1.0) < 1.0 and run.task_digest in tasks]
    return [
        Mistake(
            task_id=run.task_id,
            input=tasks[run.task_digest].item,
            expected=tasks[run.task_digest].expected,
            got=run.output if run.status is RunStatus.OK else None,
            why=run.error,
        )
        for run in sorted(wrong, key=lambda run: run.task_id)[:MAX_MISTAKES]
    ]
