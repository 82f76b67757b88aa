"""``doorstep training``: what was trained over the Tinker API, read from the data folder, of all tenants."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from doorstep import config
from doorstep.cli import output
from doorstep.cli.output import Json
from doorstep.cli.working import Data
from doorstep.errors import UsageError
from doorstep.training import listing
from doorstep.training import steps as step_log
from doorstep.training.registry import Registry
from doorstep.training.steps import Step
from doorstep.training.tenants import read as read_usage

LOOK_S = 0.5
SHOWN = 40  # of the newest steps

Run = Annotated[str, typer.Argument(help="The training run's id, SESSION:train:NUMBER.")]
Follow = Annotated[bool, typer.Option("--follow", help="Go on and print each new step; Ctrl-C ends it.")]
OfRun = Annotated[str | None, typer.Option("--run", help="Only of this training run.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="See training runs, their steps, checkpoints and usage.", no_args_is_help=True)
    group.command(epilog="Example: doorstep training runs")(runs)
    group.command(epilog="Example: doorstep training show session_01…:train:0")(show)
    group.command(epilog="Example: doorstep training steps session_01…:train:0 --follow")(steps)
    group.command(epilog="Example: doorstep training checkpoints")(checkpoints)
    group.command(epilog="Example: doorstep training usage")(usage)
    app.add_typer(group, name="training", epilog="Example: doorstep training runs")


def runs(data: Data = None, as_json: Json = False) -> None:
    """List the training runs, the newest first."""
    registry = _registry(data)
    found = [_plain_run(registry, run.run_id) for run in registry.runs(None)]
    damaged = [{"training_run_id": one.name, "error": one.why} for one in registry.damaged_runs(None)]
    if as_json:
        output.emit({"runs": found, "damaged": damaged})
        return
    rows = [
        [run["training_run_id"], run["base_model"], _rank(run), str(run["steps"]), str(run["checkpoints"])]
        for run in found
    ]
    output.show_table("Training runs", ["run", "base", "rank", "steps", "saved"], rows)
    for one in damaged:
        output.say(f"{one['training_run_id']}: {one['error']}", style="red")


def show(run: Run, data: Data = None, as_json: Json = False) -> None:
    """Show one training run with its checkpoints and its last step."""
    registry = _registry(data)
    found = _plain_run(registry, run)
    saved = [listing.checkpoint(one) for one in registry.checkpoints(run, None)]
    last = _steps_of(registry, run)[-1:]
    if as_json:
        output.emit({"run": found, "checkpoints": saved, "last_step": last[0] if last else None})
        return
    plain = {name: value for name, value in found.items() if value is not None and not isinstance(value, dict)}
    rows = [[name.replace("_", " "), str(value)] for name, value in plain.items()]
    output.show_table(run, ["", ""], rows)
    if saved:
        _show_checkpoints(saved)
    if last:
        _show_steps(last)


def steps(run: Run, follow: Follow = False, data: Data = None, as_json: Json = False) -> None:
    """Show a training run's steps: loss, gradient norm, tokens and times."""
    registry = _registry(data)
    registry.run(run, None)
    if follow and as_json:
        raise UsageError("--json prints one object, so it does not go with --follow; leave one of them out")
    done = _steps_of(registry, run)
    if as_json:
        output.emit({"run_id": run, "steps": done})
        return
    _show_steps(done[-SHOWN:])
    if follow:
        for step in new_steps(registry, run, len(done)):
            output.out.print("".join(f"{cell:>10}" for cell in _cells(step)))


def checkpoints(run: OfRun = None, data: Data = None, as_json: Json = False) -> None:
    """List the checkpoints, the newest first."""
    registry = _registry(data)
    saved = registry.all_checkpoints(None) if run is None else registry.checkpoints(run, None)[::-1]
    listed = [listing.checkpoint(one) for one in saved]
    if as_json:
        output.emit({"checkpoints": listed})
    else:
        _show_checkpoints(listed)


def usage(data: Data = None, as_json: Json = False) -> None:
    """Show what each tenant used, by day, and what its checkpoints take on disk."""
    registry = _registry(data)
    used = sorted(read_usage(_folder(data) / "usage.jsonl").values(), key=lambda one: (one.day, one.tenant, one.kind))
    tenants = {one.tenant for one in used} | {run.owner for run in registry.runs(None)}
    held = {tenant: registry.bytes_of(tenant) for tenant in sorted(tenants)}
    if as_json:
        output.emit({"used": used, "checkpoint_bytes": held})
        return
    rows = [[one.day, one.tenant, one.kind, f"{one.tokens:,}", f"{one.seconds:.1f}"] for one in used]
    output.show_table("Used", ["day", "tenant", "kind", "tokens", "engine seconds"], rows)
    output.show_table("Kept", ["tenant", "bytes"], [[tenant, f"{size:,}"] for tenant, size in held.items()])


def new_steps(registry: Registry, run_id: str, seen: int) -> Iterator[Step]:
    """Yield the steps that come from now on."""
    while True:
        done = _steps_of(registry, run_id)
        yield from done[seen:]
        seen = len(done)
        time.sleep(LOOK_S)


def _folder(data: str | None) -> Path:
    return config.load(overrides={"data": data}).data / "training"


def _registry(data: str | None) -> Registry:
    return Registry(_folder(data) / "sessions")


def _plain_run(registry: Registry, run_id: str) -> dict[str, Any]:
    run = registry.run(run_id, None)
    counts = {"steps": len(_steps_of(registry, run_id)), "checkpoints": len(registry.checkpoints(run_id, None))}
    return listing.training_run(registry, run, None) | counts


def _rank(run: dict[str, Any]) -> str:
    return str(run["lora_rank"] or "full")


def _steps_of(registry: Registry, run_id: str) -> list[Step]:
    return list(step_log.steps(step_log.operations(registry.steps_file(run_id))))


def _show_steps(done: list[Step]) -> None:
    columns = ["step", "loss", "per token", "grad norm", "rate", "rows", "tokens", "fb s", "optim s", "queued s"]
    output.show_table("Steps", columns, [_cells(step) for step in done])


def _cells(step: Step) -> list[str]:
    per_token = step.loss / step.tokens if step.loss is not None and step.tokens else None
    figures = [_figure(value) for value in (step.loss, per_token, step.grad_norm, step.learning_rate)]
    times = [f"{value:.3f}" for value in (step.forward_backward_s, step.optim_s, step.queued_s)]
    return [str(step.step), *figures, str(step.rows), str(step.tokens), *times]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _show_checkpoints(listed: list[dict[str, Any]]) -> None:
    """Print a path to a line, to be copied, and below it what there is to say."""
    for one in listed:
        output.out.print(one["tinker_path"], style="bold", soft_wrap=True)
        said = [one["checkpoint_type"], f"{one['size_bytes']:,} bytes", f"made {_moment(one['time'])}"]
        said += ["published"] if one["public"] else []
        said += [f"expires {_moment(one['expires_at'])}"] if one["expires_at"] else []
        output.out.print(f"  {', '.join(said)}", soft_wrap=True)


def _moment(text: str) -> str:
    return text[:16].replace("T", " ")
