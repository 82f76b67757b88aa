"""``doorstep import``: settings, history and records of other programs."""

import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from doorstep import config
from doorstep.cli import output
from doorstep.cli.output import SHOWN, Json, say
from doorstep.cli.working import Data
from doorstep.errors import UsageError
from doorstep.gateway.migration import history, langfuse, litellm, openai_files, tensorzero_config, tensorzero_rows
from doorstep.gateway.migration.files import Line, read_files
from doorstep.gateway.migration.history import Entry, Refused, Report
from doorstep.gateway.migration.settings import Draft
from doorstep.improve.plan import write_atomic
from doorstep.store import Store

SettingsOut = Annotated[Path | None, typer.Option(help="File to write the settings to; default: stdout.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="Take over settings, history and records of other programs.", no_args_is_help=True)
    group.command("litellm", epilog="Example: doorstep import litellm config.yaml --out doorstep.toml")(from_litellm)
    group.command(
        "tensorzero",
        epilog="Example: doorstep import tensorzero tensorzero.toml --rows ChatInference.jsonl --out doorstep.toml",
    )(from_tensorzero)
    group.command("openai", epilog="Example: doorstep import openai finetune.jsonl --out records.jsonl")(from_openai)
    group.command("langfuse", epilog="Example: doorstep import langfuse traces.jsonl observations.jsonl")(from_langfuse)
    app.add_typer(group, name="import", epilog="Example: doorstep import litellm config.yaml")


def from_litellm(
    file: Annotated[Path, typer.Argument(help="LiteLLM's config.yaml.")],
    out: SettingsOut = None,
    as_json: Json = False,
) -> None:
    """Turn LiteLLM's config.yaml into a doorstep.toml: providers, names of models, weights, fallbacks, prices.

    Keys are taken over as the names of their environment variables. What has no place here is listed.
    """
    import yaml

    try:
        found = yaml.safe_load(_read(file))
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is no YAML: {error}") from None
    result = _settings(litellm.draft(found), out, quiet=as_json)
    if as_json:
        output.emit(result)


def from_tensorzero(
    files: Annotated[
        list[Path] | None, typer.Argument(help="TensorZero's tensorzero.toml, in one file or many.")
    ] = None,
    rows: Annotated[
        list[Path] | None, typer.Option(help="Exported rows of its tables, .jsonl: inferences and feedback.")
    ] = None,
    out: SettingsOut = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Turn TensorZero's settings into a doorstep.toml, and its rows into runs, calls and feedback.

    What clients call a function or model stays its name. Rows that are there already are not written again.
    """
    if not files and not rows:
        raise UsageError("give tensorzero.toml, or rows: doorstep import tensorzero --rows ChatInference.jsonl")
    result: dict[str, Any] = {}
    if files:
        found = tensorzero_config.merged((str(file), _toml(file)) for file in files)
        result |= _settings(tensorzero_config.draft(found), out, quiet=as_json)
    if rows:
        report = _bring(rows, data, tensorzero_rows.entries)
        result |= msgspec.to_builtins(report)
        _tell(report, quiet=as_json)
    if as_json:
        output.emit(result)


def from_openai(
    file: Annotated[Path, typer.Argument(help="Fine-tuning chats, preferences or stored completions, .jsonl.")],
    out: Annotated[Path, typer.Option(help="File to write the records to, for doorstep init --from.")],
    as_json: Json = False,
) -> None:
    """Turn OpenAI's examples into records, each with an input and what is expected.

    A system prompt that all examples share is an instruction: it is shown, for SYSTEM in the workflow.
    """
    with output.bars() as bars:
        found = openai_files.records(read_files([file], bars.bar(f"read {file.name}")))
    write_atomic(out, b"".join(msgspec.json.encode(record) + b"\n" for record in found.records))
    count = len(found.records)
    if as_json:
        report = Report(read=count + len(found.refused), added=count, refused=found.refused)
        output.emit({**msgspec.to_builtins(report), "out": str(out), "instructions": found.instructions})
        return
    say(f"{out}: {count} records. Next: doorstep init NAME --from {out}")
    if found.instructions:
        say(f"All have this system prompt; put it into SYSTEM of workflow.py:\n{found.instructions}")
    _tell_refused(found.refused)


def from_langfuse(
    files: Annotated[list[Path], typer.Argument(help="Exports of traces, observations, scores: .jsonl, .json, .csv.")],
    workflow: Annotated[
        str | None, typer.Option(help="The workflow that the runs belong to; default: named as their trace.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Turn what Langfuse exports into runs, calls, grades and feedback. What is there already is not written again."""

    def entries(read: Callable[[], Iterable[Line]], store: Store) -> Iterator[Entry]:
        return langfuse.entries(read, store, workflow)

    report = _bring(files, data, entries)
    if as_json:
        output.emit(report)
    _tell(report, quiet=as_json)


def _bring(
    files: list[Path], data: str | None, entries: Callable[[Callable[[], Iterable[Line]], Store], Iterator[Entry]]
) -> Report:
    settings = config.load(overrides={"data": data})
    with Store.open(settings.record) as store, output.bars() as bars:

        def read() -> Iterator[Line]:
            return read_files(files, bars.bar(f"read {len(files)} files"))

        return history.write(store, entries(read, store))


def _settings(draft: Draft, out: Path | None, *, quiet: bool) -> dict[str, Any]:
    """Write or print settings, and tell what has no place in them."""
    text = draft.toml()
    if out is not None:
        if out.exists():
            raise UsageError(f"{out} exists. Give another name, and compare the two.")
        write_atomic(out, text.encode())
    elif not quiet:
        typer.echo(text, nl=False)
    if not quiet:
        say(f"Not taken over as it was: {len(draft.notes)}." if draft.notes else "All of it was taken over.")
        for note in draft.notes:
            say(f"  {note.where}: {note.why}")
    return {"toml": text, "notes": msgspec.to_builtins(draft.notes)}


def _tell(report: Report, *, quiet: bool) -> None:
    if not quiet:
        say(f"Read {report.read} lines: {report.added} new, {report.known} known, {report.joined} part of others.")
        _tell_refused(report.refused)


def _tell_refused(refused: list[Refused]) -> None:
    if refused:
        say(f"Refused: {len(refused)}.")
    for line in refused[: SHOWN * 4]:
        say(f"  {line.line}: {line.why}")


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(file))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is no TOML: {error}") from None


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
