"""``doorstep conformance URL``: what works of the Tinker API at an address, what is wrong, how long each call took."""

import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from doorstep.cli import output
from doorstep.cli.output import Json, say
from doorstep.errors import UsageError

if TYPE_CHECKING:
    from doorstep.training.conformance.runner import Call

ANY_KEY = "tml-conformance"  # the SDK refuses keys that begin otherwise

Url = Annotated[str, typer.Argument(help="Address of a Tinker server, without /api/v1.")]
Model = Annotated[str | None, typer.Option(help="Base model to use; the first that the server names.")]
Only = Annotated[str, typer.Option(help="Pattern, part of a name, or group, such as 'losses' or '*optim*'.")]
SecondKey = Annotated[str, typer.Option(help="Another tenant's key, to check that it reaches nothing.")]
Limit = Annotated[float, typer.Option(help="Most seconds that a check may take.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: doorstep conformance http://127.0.0.1:8000 --only losses")(conformance)


def conformance(
    url: Url,
    model: Model = None,
    only: Only = "",
    second_key: SecondKey = "",
    limit: Limit = 60.0,
    as_json: Json = False,
) -> None:
    """Drive the tinker SDK call by call against a server, and say what works, what is wrong and how long it took.

    The key is TINKER_API_KEY. Models and checkpoints that are made stay on the server under that key.
    """
    from doorstep.training.conformance import runner
    from doorstep.training.conformance.checks import Wrong
    from doorstep.training.conformance.session import Target

    os.environ["TINKER_TELEMETRY"] = "0"
    logging.getLogger("tinker").setLevel(logging.CRITICAL)  # its retries would run through the table
    key = os.environ.get("TINKER_API_KEY", ANY_KEY)
    try:
        runner.reach(url)
    except Wrong as error:
        raise UsageError(str(error)) from None
    chosen = runner.checks(only)
    if not chosen:
        raise UsageError(f"no check matches --only {only!r}. Leave it out to run all of them.")
    target = Target(url, key, model or _first_model(url, key), second_key)
    say(f"tinker {runner.sdk_version()} against {url}, base model {target.model}: {len(chosen)} checks")
    calls = []
    for call in runner.run(target, chosen, limit):
        calls.append(call)
        _tell(call)
    tried = [call for call in calls if call.tried]
    failed = [call for call in tried if not call.ok]
    if as_json:
        told = [asdict(call) for call in calls]
        output.emit(
            {
                "sdk": runner.sdk_version(),
                "model": target.model,
                "passed": len(tried) - len(failed),
                "failed": len(failed),
                "calls": [one for one in told if one.pop("tried")],
                "not_tried": [{"name": call.name, "why": call.error} for call in calls if not call.tried],
            }
        )
    else:
        _table(calls)
    raise typer.Exit(1 if failed else 0)


def _first_model(url: str, key: str) -> str:
    from doorstep.training.conformance import runner

    try:
        return runner.first_model(url, key)
    except Exception as error:  # whatever the SDK makes of another server
        raise UsageError(f"{url} does not say which models it has ({error}). Name one with --model.") from None


def _tell(call: "Call") -> None:
    mark, style = ("ok", None) if call.ok and call.tried else ("--", "dim") if not call.tried else ("WRONG", "red")
    say(f"{mark:>5}  {call.ms:7.0f} ms  {call.name}" + (f": {call.error}" if call.error else ""), style=style)


def _table(calls: list["Call"]) -> None:
    """Print each group's count and time, and below it what is wrong."""
    rows = []
    for group in dict.fromkeys(call.group for call in calls):
        members = [call for call in calls if call.group == group and call.tried]
        right = sum(call.ok for call in members)
        slowest = max(members, key=lambda call: call.ms, default=None)
        rows.append(
            [
                group,
                str(right),
                str(len(members) - right),
                f"{sum(call.ms for call in members) / 1000:.1f} s",
                f"{slowest.name} ({slowest.ms:.0f} ms)" if slowest else "",
            ]
        )
    output.show_table("Tinker API", ["group", "passed", "failed", "time", "slowest"], rows)
    for call in calls:
        if not call.ok:
            typer.echo(f"{call.name}: {call.error}")
