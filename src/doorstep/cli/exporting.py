"""``doorstep export``: calls and runs as JSONL for others, without secrets and personal data."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from doorstep import config
from doorstep.cli import output
from doorstep.cli.costs import moment
from doorstep.cli.keys import user_name
from doorstep.cli.output import Json, say
from doorstep.cli.working import Data
from doorstep.errors import UsageError
from doorstep.gateway.audit import Journal
from doorstep.gateway.exporting import Outlet
from doorstep.store import Store

Out = Annotated[Path, typer.Option(help="File to write, an object on each line; it is there when all of it is.")]
Workflow = Annotated[str | None, typer.Option(help="Only what belongs to this workflow.")]
Since = Annotated[str | None, typer.Option(help="Day of the first (UTC), such as 2026-11-01; default: all.")]
NoRedact = Annotated[
    bool, typer.Option("--no-redact", help="Leave secrets and personal data in; the log of changes says so.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="Write calls or runs to a file, redacted.", no_args_is_help=True)
    group.command(epilog="Example: doorstep export calls --out calls.jsonl --workflow orders --since 2026-11-01")(calls)
    group.command(epilog="Example: doorstep export runs --out runs.jsonl --workflow orders")(runs)
    app.add_typer(group, name="export", epilog="Example: doorstep export calls --out calls.jsonl")


def calls(
    out: Out,
    workflow: Workflow = None,
    since: Since = None,
    no_redact: NoRedact = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write model calls: who asked what of which model, and what it answered, used and cost.

    Keys, tokens, passwords, e-mail addresses, phone numbers, IBANs, cards and public IP addresses are replaced by their
    kind, pictures and sound left out. Names and postal addresses are not found: look before you give it to others.
    """
    _export("calls", Outlet.calls, out, workflow, since, not no_redact, data, as_json)


def runs(
    out: Out,
    workflow: Workflow = None,
    since: Since = None,
    no_redact: NoRedact = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write runs: their messages, uses of tools, output, grades and feedback; redacted as calls are."""
    _export("runs", Outlet.runs, out, workflow, since, not no_redact, data, as_json)


def _export(
    what: str,
    rows: Callable[[Outlet, str | None, int], Iterator[dict[str, Any]]],
    out: Path,
    workflow: str | None,
    since: str | None,
    redacts: bool,
    data: str | None,
    as_json: bool,
) -> None:
    settings = config.load(overrides={"data": data})
    since_us = moment(since)
    with Store.open(settings.record) as store:
        outlet = Outlet(store, redacts=redacts)
        # First in the log, then in the file: what nobody can see later should not leave.
        Journal(store, f"cli:{user_name()}").note(
            f"export.{what}", str(out), {"workflow": workflow, "since": since, "redacted": redacts}
        )
        with output.bars() as bars:
            written = _write(out, rows(outlet, workflow, since_us), bars.bar(f"export {what}"))
    result = {"out": str(out), "written": written, "redacted": dict(outlet.found) if redacts else None}
    if as_json:
        output.emit(result)
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in outlet.found.most_common())
    say(f"{out}: {written} {what}. " + (f"Replaced: {kinds or 'nothing'}." if redacts else "Nothing was redacted."))


def _write(out: Path, rows: Iterator[dict[str, Any]], progress: Callable[[int, int | None], None]) -> int:
    """Write rows to a file that appears when it is whole; return how many."""
    part = out.with_name(f"{out.name}.part")
    written = 0
    try:
        with part.open("wb") as file:
            for row in rows:
                file.write(msgspec.json.encode(row) + b"\n")
                written += 1
                progress(written, None)
            file.flush()
            os.fsync(file.fileno())
        part.replace(out)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return written
