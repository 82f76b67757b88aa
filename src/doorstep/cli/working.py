"""Commands of the daily work: ``init``, ``run``, ``eval``."""

import asyncio
import csv
import io
import json
import os
import shutil
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import msgspec
import typer

from doorstep import config, ids
from doorstep.cli import local_server, output, templates
from doorstep.cli.local_server import Address
from doorstep.cli.models import NOT_MEASURED, Served, served_model
from doorstep.cli.output import Json, say
from doorstep.errors import BadInput, NotFound, UsageError
from doorstep.evaluation.evaluate import await_calls, summarise
from doorstep.evaluation.rollout import Progress, roll_out
from doorstep.grading.graders import CodeGrader
from doorstep.improve.plan import write_atomic
from doorstep.store import Store
from doorstep.types import Mode, Run, RunStatus, Split
from doorstep.workflows import taskset
from doorstep.workflows.client import ModelClient
from doorstep.workflows.runner import Runner
from doorstep.workflows.taskset import Task
from doorstep.workflows.workflow import MODULE, RECORDS, Workflow, find

Data = Annotated[str | None, typer.Option(help="Data folder (default .doorstep).")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: doorstep init invoices --from records.jsonl")(init)
    app.command(epilog="Example: doorstep run orders inbox/*.eml --out orders.csv")(run)
    app.command("eval", epilog="Example: doorstep eval orders --variant base --json")(evaluate)


def init(
    name: Annotated[str, typer.Argument(help="Name of the workflow: letters, digits, - and _.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="Records: one JSON object a line with input and expected.")
    ] = None,
    example: Annotated[
        str | None, typer.Option(help="Start from a shipped example: orders, questions, tickets.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the folder workflows/NAME from records; it runs as it is, and workflow.py is yours to change."""
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"'{name}': a workflow's name has letters, digits, - and _ only")
    folder = Path("workflows") / name
    if folder.exists():
        raise UsageError(f"{folder} exists. Choose another name, or remove it first.")
    if (source is None) == (example is None):
        raise UsageError("give either --from RECORDS.jsonl or --example NAME")
    if example is not None:
        shutil.copytree(example_folder(example), folder, ignore=shutil.ignore_patterns("__pycache__"))
        records, problems = taskset.read_records(folder / RECORDS)
    else:
        assert source is not None
        records, problems = taskset.read_records(source)
        if not records:
            raise UsageError(f"{source}: no usable record. {'; '.join(problems[:3])}")
        folder.mkdir(parents=True)
        shutil.copyfile(source, folder / RECORDS)
        (folder / MODULE).write_text(templates.workflow(name, records[0]), "utf-8")
    result = {"workflow": name, "folder": str(folder), "records": len(records), "problems": problems}
    if as_json:
        output.emit(result)
        return
    say(f"{folder}: {len(records)} records." + (f" Left out: {len(problems)}." if problems else ""))
    for problem in problems[:10]:
        say(f"  {problem}")
    say(f"Next: doorstep eval {name} --variant base, then doorstep improve {name}")


def example_folder(name: str) -> Path:
    """Return the folder of a shipped example: inside the installed package, or beside the source."""
    package = Path(__file__).resolve().parents[1]
    for root in (package / "examples", package.parents[1] / "examples"):
        known = sorted(path.parent.name for path in root.glob(f"*/{MODULE}"))
        if name in known:
            return root / name
        if known:
            raise NotFound(f"no example '{name}'. There are: {', '.join(known)}")
    raise NotFound("The examples are not part of this installation; take them from the source.")


def run(
    name: Annotated[str, typer.Argument(help="The workflow.")],
    inputs: Annotated[list[Path], typer.Argument(help="Files, folders, or .jsonl files with one input a line.")],
    out: Annotated[Path | None, typer.Option(help="Result file, .csv or .jsonl.")] = None,
    variant: Annotated[str | None, typer.Option(help="Variant instead of the one with the traffic.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Do the job on new inputs; what is not sure is flagged for a person.

    Stopped or killed, the same command goes on where it was: what is done is not done again.
    """
    workflow = find(name)
    settings = config.load(overrides={"data": data})
    if out is not None and out.suffix not in (".csv", ".jsonl"):
        raise UsageError(f"--out {out}: give a name that ends in .csv or .jsonl")
    with (
        Store.open(settings.record) as store,
        local_server.running(settings) as address,
        output.bars() as bars,
    ):
        served = served_model(store, settings, workflow.name, variant)
        runs = run_batch(store, address, settings.data, workflow, served, inputs, out, bars.bar(f"run {name}"))
    report = batch_report(workflow, runs, out)
    if as_json:
        output.emit(report)
    else:
        counts = f"{report['ok']} done, {report['needs_person']} for a person, {report['failed']} failed"
        say(f"{report['n']} inputs: {counts}.")
        for line in report["problems"][:10]:
            say(f"  {line}")
        say(f"Written: {out}" if out else "Give --out FILE.csv to keep the table.")


def run_batch(
    store: Store,
    address: Address,
    data: Path,
    workflow: Workflow,
    served: Served,
    inputs: Sequence[Path],
    out: Path | None,
    progress: Progress,
) -> list[Run]:
    """Run a workflow over files; unusable files become rows too. Goes on with a batch that was stopped."""
    tasks, failures = read_inputs(workflow, inputs)
    if not tasks and not failures:
        raise UsageError("no input files: give files, or a folder that has some")
    batch_id, marker = _batch(data, workflow, served, tasks, out)

    async def work() -> list[Run]:
        async with ModelClient(address.url, address.key) as client:
            runner = Runner(
                client,
                workflow,
                variant=served.variant,
                model=served.model,
                mode=Mode.PROD,
                evaluation_id=batch_id,
                decision_id=served.decision_id,
            )
            calibration = served.calibration or NOT_MEASURED
            return await roll_out(store, runner, tasks, batch_id, calibration=calibration, progress=progress)

    runs = asyncio.run(work()) if tasks else []
    unusable = [_unusable(workflow, served, batch_id, failure) for failure in failures]
    store.add(*unusable)
    runs += unusable
    if out is not None:
        write_atomic(out, render_results(workflow, runs, out.suffix).encode())
    marker.unlink(missing_ok=True)
    return runs


class Unusable(NamedTuple):
    """An input that cannot be run, and why."""

    task_id: str
    error: BadInput


def read_inputs(workflow: Workflow, paths: Sequence[Path]) -> tuple[list[Task], list[Unusable]]:
    """Read inputs from files, folders and .jsonl files; each unusable one is an error of its own.

    An input is called by its file's stem, a line by its ``id`` or number; where two would have the same name, by its
    path below the folder that holds all.
    """
    files = list(_files(paths))
    inputs = [one for path in files for one in _inputs(workflow, path, _below_common(path, files))]
    names = Counter(one.name for one in inputs)
    tasks: list[Task] = []
    failures: list[Unusable] = []
    for one in inputs:
        name = one.name if names[one.name] == 1 else one.full_name
        try:
            item = one.load()
            tasks.append(Task(task_id=name, digest=taskset.task_digest(item), item=item))
        except BadInput as error:
            failures.append(Unusable(name, error))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            failures.append(Unusable(name, BadInput(one.full_name, f"it cannot be written as JSON: {error}")))
    return tasks, failures


def render_results(workflow: Workflow, runs: Sequence[Run], suffix: str) -> str:
    """Return the results as CSV or JSONL: one row per input."""
    rows = [result_row(workflow, run) for run in runs]
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    fields = list(workflow.columns or dict.fromkeys(key for row in rows for key in row["fields"]))
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", *fields, "confidence", "needs_person", "run_id", "error"])
    for row in rows:
        values = [_cell(row["fields"].get(field)) for field in fields]
        writer.writerow(
            [
                row["id"],
                *values,
                _cell(row["confidence"]),
                str(row["needs_person"]).lower(),
                row["run_id"],
                row["error"] or "",
            ]
        )
    return buffer.getvalue()


def result_row(workflow: Workflow, run: Run) -> dict[str, Any]:
    """Return one run as a row; a result of several lines has them joined by '; ' in each field."""
    lines = workflow.rows(run.output) if run.status is RunStatus.OK else []
    fields: dict[str, Any] = {}
    for key in dict.fromkeys(key for line in lines for key in line):
        values = [line.get(key) for line in lines]
        fields[key] = values[0] if len(lines) == 1 else "; ".join(_cell(value) for value in values)
    confidence = None if run.confidence is None else round(run.confidence, 3)
    return {
        "id": run.task_id,
        "fields": fields,
        "confidence": confidence,
        "needs_person": run.needs_person,
        "run_id": run.run_id,
        "error": run.error,
    }


def batch_report(workflow: Workflow, runs: Sequence[Run], out: Path | None) -> dict[str, Any]:
    """Return the counts of a batch."""
    return {
        "workflow": workflow.name,
        "n": len(runs),
        "ok": sum(1 for run in runs if run.status is RunStatus.OK and not run.needs_person),
        "needs_person": sum(1 for run in runs if run.needs_person),
        "failed": sum(1 for run in runs if run.status is not RunStatus.OK),
        "problems": [f"{run.task_id}: {run.error}" for run in runs if run.error],
        "out": None if out is None else str(out),
    }


def evaluate(
    name: Annotated[str, typer.Argument(help="The workflow.")],
    variant: Annotated[
        str | None,
        typer.Option(
            help="base, sft, rl, a served model such as openai/gpt-5-mini; default: the one with the traffic."
        ),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Measure a variant on the sealed held-out records, with a 95 % interval."""
    workflow = find(name)
    settings = config.load(overrides={"data": data})
    sealed = taskset.seal(workflow.name, workflow.records)
    tasks = sealed.tasks[Split.HELD_OUT]
    with (
        Store.open(settings.record) as store,
        local_server.running(settings) as address,
        output.bars() as bars,
    ):
        store.add(sealed.dataset, *sealed.items)
        served = served_model(store, settings, workflow.name, variant)
        evaluation_id, marker = unfinished(
            settings.data, ["eval", sealed.dataset.digest, workflow.version, served.model], "eval"
        )

        async def work() -> list[Run]:
            async with ModelClient(address.url, address.key) as client:
                runner = Runner(
                    client,
                    workflow,
                    variant=served.variant,
                    model=served.model,
                    mode=Mode.EVAL,
                    evaluation_id=evaluation_id,
                )
                progress = bars.evaluation(served.variant, Split.HELD_OUT)
                return await roll_out(
                    store, runner, tasks, evaluation_id, grader=CodeGrader(workflow.grade), progress=progress
                )

        runs = asyncio.run(work())
        await_calls(store, runs)
        result = summarise(store, evaluation_id, runs)
    marker.unlink(missing_ok=True)
    if as_json:
        output.emit(result)
        return
    output.show_table(
        f"{name}, variant {result.variant}",
        ["measure", "value"],
        [
            ["exactly right", f"{result.score:.1%}"],
            ["95 % interval", f"{result.low:.1%} … {result.high:.1%}"],
            ["held-out records", str(result.n)],
            ["without a grade", str(result.missing)],
            ["cost", "unknown" if result.cost_usd is None else f"${result.cost_usd:.4f}"],
            ["latency p50 / p95", f"{result.p50_ms:.0f} / {result.p95_ms:.0f} ms"],
        ],
    )


class _Input(NamedTuple):
    """One input that is not loaded yet."""

    name: str
    full_name: str
    load: Callable[[], Any]


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(child for child in path.iterdir() if child.is_file())
        else:
            yield path


def _below_common(path: Path, files: Sequence[Path]) -> str:
    """Return a file's path below the folder that all files are in."""
    common = os.path.commonpath([file.absolute().parent for file in files])
    return _text(path.absolute().relative_to(common).as_posix())


def _inputs(workflow: Workflow, path: Path, full_name: str) -> Iterator[_Input]:
    if path.suffix != ".jsonl":
        yield _Input(_text(path.stem), full_name, partial(_load, workflow, path))
        return
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        yield _Input(_text(path.stem), full_name, partial(_raise, full_name, f"cannot be read: {error.strerror}"))
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _line(line, number, f"{full_name}:{number}")


def _line(line: bytes, number: int, full_name: str) -> _Input:
    """Return the input on a line: that of a record, or the value as it is."""
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _Input(str(number), full_name, partial(_raise, full_name, f"not JSON in UTF-8: {error}"))
    if isinstance(value, dict) and "input" in value:
        name = value.get("id")
        return _Input(str(number if name is None else name), full_name, lambda: value["input"])
    return _Input(str(number), full_name, lambda: value)


def _raise(where: str, why: str) -> NoReturn:
    raise BadInput(where, why)


def _text(name: str) -> str:
    """Return a file's name, or words about it, as text that can be stored, whatever bytes the name has."""
    return name.encode("utf-8", "backslashreplace").decode()


def _load(workflow: Workflow, path: Path) -> Any:
    try:
        return workflow.load(path)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(str(path), str(error) or type(error).__name__) from None


def _unusable(workflow: Workflow, served: Served, batch_id: str, failure: Unusable) -> Run:
    now = ids.now_us()
    return Run(
        run_id=ids.new_id("run"),
        workflow=workflow.name,
        variant=served.variant,
        mode=Mode.PROD,
        task_id=failure.task_id,
        task_digest=ids.digest(_text(failure.error.where)),
        status=RunStatus.INPUT_ERROR,
        started_us=now,
        ended_us=now,
        evaluation_id=batch_id,
        needs_person=True,
        error=_text(str(failure.error)),
    )


def _batch(data: Path, workflow: Workflow, served: Served, tasks: Sequence[Task], out: Path | None) -> tuple[str, Path]:
    key = [workflow.name, workflow.version, served.model, str(out), sorted(task.digest for task in tasks)]
    return unfinished(data, key, "batch")


def unfinished(data: Path, key: list[Any], kind: str) -> tuple[str, Path]:
    """Return the id of the same work if it was stopped before its end, else a new id, and the note that keeps it."""
    marker = data / "unfinished" / f"{kind}_{ids.digest(key)[:24]}.json"
    marker.parent.mkdir(parents=True, exist_ok=True)
    if marker.exists():
        return str(msgspec.json.decode(marker.read_bytes())), marker
    work_id = ids.new_id(kind)
    write_atomic(marker, msgspec.json.encode(work_id))
    return work_id, marker


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
