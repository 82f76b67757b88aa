"""``doorstep improve``: from records to a candidate with a decision."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from doorstep import config, ids
from doorstep.cli import local_server, output
from doorstep.cli.local_server import Address
from doorstep.cli.output import SHOWN, Json, say
from doorstep.cli.working import Data
from doorstep.config import Settings
from doorstep.errors import EngineUnavailable, UsageError
from doorstep.fetch import fetch
from doorstep.hub import model_folder
from doorstep.improve.outcome import Outcome
from doorstep.improve.plan import (
    DEFAULT_BUDGET_S,
    OUTCOME,
    Job,
    Plan,
    RlPlan,
    parse_budget,
    rl_steps_within,
    sft_plan,
    sft_steps,
    write_atomic,
)
from doorstep.store import Store
from doorstep.types import Decision, Split
from doorstep.workflows.taskset import Taskset, seal
from doorstep.workflows.workflow import Workflow, find, load_workflow

if TYPE_CHECKING:
    from doorstep.improve.ladder import Listener, Services

ENGINE_S = 120.0  # in which an engine that died is there again


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(
        epilog="Example: doorstep improve orders --budget 5m    after a kill: doorstep improve orders --resume"
    )(improve)


def improve(
    name: Annotated[str | None, typer.Argument(help="The workflow; with --resume it may be left out.")] = None,
    budget: Annotated[
        str, typer.Option(help="About how long it may take: 90s, 5m, 1h. Fixed into a number of steps.")
    ] = "4m",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last improvement that was stopped.")] = False,
    compare: Annotated[list[str] | None, typer.Option(help="Also measure PROVIDER/MODEL on the same records.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Train a model of your own on the records, measure it on held-out ones, and let the gate decide.

    The base, supervised fine-tuning and reinforcement learning are measured on the same sealed records. Killed at
    any moment, --resume ends with the same adapter, bit for bit.
    """
    settings = config.load(overrides={"data": data})
    job, workflow = _resumed(settings, name) if resume else _planned(settings, name, budget, seed)
    with output.bars() as bars:
        outcome = climb(settings, job, workflow, bars, compare or [])
    if as_json:
        output.emit(improve_report(outcome))
        return
    show_rungs(outcome)
    say(verdict_line(outcome.decision))
    say(f"Next: doorstep promote {workflow.name}, then doorstep report {workflow.name}")


def plan_for(
    settings: Settings,
    workflow: Workflow,
    taskset: Taskset,
    *,
    seed: int,
    seconds: float = DEFAULT_BUDGET_S,
    job_id: str | None = None,
) -> Job:
    """Freeze the plan of a new improvement."""
    records = taskset.dataset.counts[Split.TRAIN]
    sft = sft_plan(records)
    plan = Plan(
        job_id=job_id or ids.new_id("job"),
        workflow=workflow.name,
        folder=str(workflow.folder.resolve()),
        workflow_version=workflow.version,
        base=settings.serve.model or "",
        base_digest=base_digest(settings),
        dataset_id=taskset.dataset.dataset_id,
        dataset_digest=taskset.dataset.digest,
        seed=seed,
        sft=sft,
        rl=RlPlan(steps=rl_steps_within(seconds, sft_steps(sft, records))),
        created_us=ids.now_us(),
    )
    return Job.create(jobs_folder(settings), plan)


def base_digest(settings: Settings) -> str:
    """Return the digest of the local base model, which must be configured."""
    if not settings.serve.model:
        raise UsageError("No local model is configured to train. Set model under [serve], such as 'tiny'.")
    return config.weights_digest(model_folder(settings.serve.model))


def climb(settings: Settings, job: Job, workflow: Workflow, listener: "Listener", compare: Sequence[str]) -> Outcome:
    """Run the ladder of a job on a running Doorstep and keep its outcome."""
    from doorstep.improve.ladder import Ladder  # the training client takes two seconds to import

    # Where the engine dies, each of many samples would say what the training run says once.
    logging.getLogger("tinker.lib.retry_handler").setLevel(logging.CRITICAL)
    taskset = seal(workflow.name, workflow.records)
    for problem in taskset.problems[:5]:
        say(f"left out: {problem}")
    with Store.open(settings.record) as store, local_server.running(settings) as address:
        reached = services(settings, store, address)
        outcome = Ladder(job, workflow, taskset, reached, listener, compare).climb()
    write_atomic(job.folder / OUTCOME, msgspec.json.encode(outcome))
    return outcome


def services(settings: Settings, store: Store, address: Address) -> "Services":
    """Return what a ladder needs of the Doorstep that runs at an address."""
    from doorstep.improve.ladder import Services
    from doorstep.renderers.chat import ChatRenderer

    health = _health(address)
    if not health.get("model"):
        raise UsageError("The running Doorstep has no local model to train; start it with --model tiny.")
    return Services(
        url=address.url,
        key=address.key,
        store=store,
        renderer=ChatRenderer(Path(health["model"]["folder"])),
        base=health["model"]["name"],
        base_digest=health["model"]["digest"],
        max_context=health["model"]["max_context"],
        cpu_clock=lambda: float(_health(address)["cpu_seconds"]),
        core_hour_usd=settings.prices.core_hour_usd,
    )


def _health(address: Address) -> dict[str, Any]:
    """Return what a server says of itself; one whose engine is being started again is waited for."""
    until = time.monotonic() + ENGINE_S
    while (answer := fetch(f"{address.url}/healthz", timeout_s=10.0)).status != 200:
        if time.monotonic() > until:
            raise EngineUnavailable(f"Doorstep at {address.url} has no engine: {answer.text[:300]}")
        time.sleep(0.5)
    found: dict[str, Any] = answer.json()
    return found


def jobs_folder(settings: Settings) -> Path:
    """Return where improvements are kept."""
    return settings.data / "improve"


def improve_report(outcome: Outcome) -> dict[str, Any]:
    """Return the contract's JSON of an improvement."""
    rungs = [
        {
            "name": rung.name,
            "score": rung.evaluation.score,
            "low": rung.evaluation.low,
            "high": rung.evaluation.high,
            "n": rung.evaluation.n,
            "cost_usd": rung.cost_usd,
            "seconds": rung.seconds,
        }
        for rung in outcome.rungs
    ]
    return {
        "workflow": outcome.candidate.workflow,
        "rungs": rungs,
        "candidate": {
            "variant": outcome.candidate.variant,
            "path": outcome.candidate.path,
            "adapter_digest": outcome.candidate.adapter_digest,
        },
        "decision": decision_report(outcome.decision),
        "left_out": {"n": len(outcome.left_out), "first": outcome.left_out[:SHOWN]},
    }


def decision_report(decision: Decision) -> dict[str, Any]:
    """Return a decision as JSON: verdict and evidence."""
    return {
        "id": decision.decision_id,
        "verdict": decision.verdict,
        "champion": decision.champion,
        "candidate": decision.candidate,
        "p_value": decision.statistics.get("p_value"),
        "statistics": decision.statistics,
    }


def show_rungs(outcome: Outcome) -> None:
    """Print the rungs as a table."""
    rows = [
        [
            rung.name,
            f"{rung.evaluation.score:.1%}",
            f"{rung.evaluation.low:.1%} … {rung.evaluation.high:.1%}",
            str(rung.evaluation.n),
            f"{rung.seconds:.0f} s",
            f"${rung.cost_usd:.4f}",
        ]
        for rung in outcome.rungs
    ]
    title = f"{outcome.candidate.workflow}: exactly right on held-out records"
    output.show_table(title, ["rung", "score", "95 % interval", "n", "training", "cost"], rows)


def verdict_line(decision: Decision) -> str:
    """Say the decision in one sentence."""
    p_value = decision.statistics.get("p_value")
    shown = "" if p_value is None else f" (p = {p_value:.2g})"
    verdict = f"{decision.verdict} {decision.candidate} against {decision.champion}{shown}"
    return f"Gate: {verdict}. Decision {decision.decision_id}"


def last_outcome(settings: Settings, workflow: str) -> tuple[Job, Outcome]:
    """Return the newest finished improvement of a workflow."""
    for path in sorted(jobs_folder(settings).glob(f"*/{OUTCOME}"), reverse=True):
        job = Job(path.parent)
        if job.plan.workflow == workflow:
            return job, msgspec.json.decode(path.read_bytes(), type=Outcome)
    raise UsageError(f"'{workflow}' has no finished improvement yet. Make one: doorstep improve {workflow}")


def _resumed(settings: Settings, name: str | None) -> tuple[Job, Workflow]:
    job = Job.latest(jobs_folder(settings), name)
    say(f"Going on with {job.plan.job_id} of '{job.plan.workflow}'.")
    return job, load_workflow(Path(job.plan.folder))


def _planned(settings: Settings, name: str | None, budget: str, seed: int) -> tuple[Job, Workflow]:
    if name is None:
        raise UsageError("name the workflow: doorstep improve NAME")
    workflow = find(name)
    taskset = seal(workflow.name, workflow.records)
    return plan_for(settings, workflow, taskset, seed=seed, seconds=parse_budget(budget)), workflow
