"""``doorstep demo``: the whole loop on a shipped example, from records to an own model with the traffic."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer

from doorstep import config
from doorstep.cli import local_server, output
from doorstep.cli.deciding import move_traffic
from doorstep.cli.improving import base_digest, climb, jobs_folder, plan_for, verdict_line
from doorstep.cli.local_server import Address
from doorstep.cli.models import BASE, served_model
from doorstep.cli.output import Json, say
from doorstep.cli.report import HOSTED, Report, build
from doorstep.cli.reporting import show_report, write_report
from doorstep.cli.working import batch_report, example_folder, run_batch, unfinished
from doorstep.config import Settings
from doorstep.fetch import fetch
from doorstep.improve.outcome import Rung
from doorstep.improve.plan import Job, parse_budget
from doorstep.store import Store
from doorstep.types import Split
from doorstep.workflows.taskset import Taskset, seal
from doorstep.workflows.workflow import MODULE, Workflow, load_workflow

STEPS = ("start", "load", "base", "train", "decide", "inbox", "report")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: doorstep demo --seed 1")(demo)


def demo(
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    workflow: Annotated[str, typer.Option(help="orders, questions, tickets, or a workflow's folder.")] = "orders",
    budget: Annotated[str, typer.Option(help="About how long training may take: 90s, 4m, 1h.")] = "4m",
    data: Annotated[str, typer.Option(help="Folder of the demo's record, models and report.")] = ".doorstep/demo",
    as_json: Json = False,
) -> None:
    """Show the whole loop: measure, train, decide, move the traffic, do new work, report.

    Stopped or killed, the same command goes on where it was. With a provider's key in the environment, its hosted
    model is measured on the same records too.
    """
    settings = config.load(overrides={"data": data})
    folder = _folder(workflow)
    with (
        Steps() as steps,
        Store.open(settings.record) as store,
    ):
        steps.begin("start", "Start Doorstep: its record on SQLite, its own engine, the gateway")
        with local_server.running(settings) as address:
            say(f"     ready on {address.url} with the model '{settings.serve.model}', data in {settings.data}")
            report = Demo(settings, store, address, folder, steps).run(seed, parse_budget(budget))
    if as_json:
        output.emit(report)
        return
    say("")
    show_report(report)
    say(f"\nThe report:      {settings.data / 'report.html'}   (and report.json)")
    if report.inbox:
        say(f"The new work:    {report.inbox['out']}")
    say("Try next:        doorstep init myjob --from records.jsonl    then    doorstep improve myjob")
    say(f"                 doorstep serve --data {data}    to use the new model from any OpenAI client")


class Steps:
    """Tells the steps of the demo, numbered and timed, each with its own bars; hears how the improvement goes on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._step: str | None = None
        self._began = 0.0
        self._shown = ExitStack()

    def __enter__(self) -> "Steps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, step: str, text: str) -> None:
        """End the step before and begin this one."""
        self.end()
        say(f"{STEPS.index(step) + 1}/{len(STEPS)}  {text}", style="bold")
        self._step, self._began = step, time.monotonic()
        self.bars = self._shown.enter_context(output.bars())

    def end(self) -> None:
        """End the step that is under way."""
        self._shown.close()
        if self._step:
            self.seconds[self._step] = round(time.monotonic() - self._began, 2)
            self._step = None

    def evaluation(self, name: str, split: Split) -> Any:
        """Return the progress function of an evaluation; the first one after training begins the comparison."""
        if name == BASE:
            self.begin("base", "Measure the base model on held-out records, which no training ever sees")
        elif self._step == "train":
            self.begin("decide", "Measure what was trained on the same held-out records, and let the gate decide")
        return self.bars.evaluation(name, split)

    def step(self, stage: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Show one training step."""
        self.bars.step(stage, step, steps, metrics)

    def left_out(self, records: Sequence[str]) -> None:
        """Tell which training records cannot be used."""
        self.bars.left_out(records)

    def rung(self, rung: Rung) -> None:
        """Show a measured rung; after the base comes training."""
        self.bars.rung(rung)
        if rung.name == BASE:
            self.begin("train", "Train: SFT on the records, then RL with the grader as the reward")


class Demo:
    """The loop, one method a step."""

    def __init__(self, settings: Settings, store: Store, address: Address, folder: Path, steps: Steps) -> None:
        self._settings = settings
        self._store = store
        self._address = address
        self._folder = folder
        self._steps = steps

    def run(self, seed: int, seconds: float) -> Report:
        """Do all steps; return the report, which is also written beside the data."""
        workflow, taskset = self._load()
        job, marker = self._job(workflow, taskset, seed, seconds)
        outcome = climb(self._settings, job, workflow, self._steps, self._hosted())
        say(f"     {verdict_line(outcome.decision)}")
        if outcome.decision.verdict == "promote":
            route = move_traffic(self._store, self._settings, outcome.decision)
            say(f"     The traffic of '{workflow.name}' moved from {outcome.decision.champion} to {route.variant}.")
        inbox = self._inbox(workflow)
        self._steps.begin("report", "Write the report")
        self._steps.end()
        report = build(self._store, self._settings, job, outcome, seconds=self._steps.seconds, inbox=inbox)
        write_report(report, self._settings.data / "report.html")
        marker.unlink(missing_ok=True)
        return report

    def _load(self) -> tuple[Workflow, Taskset]:
        self._steps.begin("load", f"Load the workflow {self._folder.name}")
        workflow = load_workflow(self._folder)
        taskset = seal(workflow.name, workflow.records)
        counts = ", ".join(f"{count} {split.replace('_', '-')}" for split, count in taskset.dataset.counts.items())
        say(f"     records: {counts} (the newest are held out); sealed as {taskset.dataset.digest[:12]}")
        return workflow, taskset

    def _job(self, workflow: Workflow, taskset: Taskset, seed: int, seconds: float) -> tuple[Job, Path]:
        """Plan the improvement, or take up the same one if it was stopped before its end."""
        key = [workflow.name, workflow.version, taskset.dataset.digest, base_digest(self._settings), seed, seconds]
        job_id, marker = unfinished(self._settings.data, key, "job")
        folder = jobs_folder(self._settings) / job_id
        if (folder / "plan.json").exists():
            say("     going on with the demo that was stopped")
            return Job(folder), marker
        return plan_for(self._settings, workflow, taskset, job_id=job_id, seed=seed, seconds=seconds), marker

    def _hosted(self) -> list[str]:
        """Name the hosted models that can be measured for real: those whose key is in the environment."""
        providers = self._settings.providers
        return [model for model in HOSTED if model.partition("/")[0] in providers and self._answers(model)]

    def _answers(self, model: str) -> bool:
        body = {"model": model, "messages": [{"role": "user", "content": "Say yes."}]}
        headers = {"authorization": f"Bearer {self._address.key}"}
        answer = fetch(f"{self._address.url}/v1/chat/completions", body, headers=headers, timeout_s=60.0)
        reached = answer.status == HTTPStatus.OK
        fate = "measured on the held-out records too" if reached else f"left out, it does not answer: {answer.text}"
        say(f"     its key is in the environment: {model} is {fate}")
        return reached

    def _inbox(self, workflow: Workflow) -> dict[str, Any] | None:
        inbox = workflow.folder / "inbox"
        if not inbox.is_dir():
            return None
        self._steps.begin("inbox", "Do the new work: the inbox, through the gateway as any OpenAI client would")
        served = served_model(self._store, self._settings, workflow.name, None)
        out = self._settings.data / f"{workflow.name}.csv"
        progress = self._steps.bars.bar(f"run {workflow.name}")
        runs = run_batch(self._store, self._address, self._settings.data, workflow, served, [inbox], out, progress)
        result = batch_report(workflow, runs, out)
        say(f"     {result['ok']} done, {result['needs_person']} for a person to look at: {out}")
        return result


def _folder(workflow: str) -> Path:
    """Take a folder as it is, and any other name as a shipped example's."""
    folder = Path(workflow)
    return folder if (folder / MODULE).exists() else example_folder(workflow)
