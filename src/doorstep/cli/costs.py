"""``doorstep costs``: price recorded calls again, and compare the record with a provider's invoice."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from doorstep import config
from doorstep.cli import output
from doorstep.cli.output import Json, say
from doorstep.cli.working import Data
from doorstep.errors import UsageError
from doorstep.store import Store
from doorstep.value.invoices import Reconciliation
from doorstep.value.invoices import reconcile as compare
from doorstep.value.prices import MICRO
from doorstep.value.repricing import reprice as price_again

Since = Annotated[str | None, typer.Option(help="Day of the first calls (UTC), such as 2026-11-01; default: all.")]
Invoice = Annotated[Path, typer.Argument(help="The export of costs, CSV, of OpenAI or Anthropic.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="Price calls again; compare with an invoice.", no_args_is_help=True)
    group.command(epilog="Example: doorstep costs reprice --since 2026-11-01")(reprice)
    group.command(epilog="Example: doorstep costs reconcile cost_2026-11.csv")(reconcile)
    app.add_typer(group, name="costs", epilog="Example: doorstep costs reconcile cost_2026-11.csv")


def reprice(since: Since = None, data: Data = None, as_json: Json = False) -> None:
    """Price the calls of hosted models by the prices known now.

    For new prices of your own in doorstep.toml, a newer price list, or calls whose price was not known. The recorded
    calls stay as they are; what differs is written as a correction, which every sum takes into account.
    """
    settings = config.load(overrides={"data": data})
    with Store.open(settings.record) as store:
        done = price_again(store, settings.prices, moment(since))
    if as_json:
        output.emit(done)
        return
    say(f"Looked at {done.calls} calls, corrected {done.corrected}: {done.change_microusd / MICRO:+.6f} USD.")
    if done.unknown:
        say(f"Calls whose price is still not known: {done.unknown}. Set it under [prices.models] in doorstep.toml.")


def reconcile(invoice: Invoice, data: Data = None, as_json: Json = False) -> None:
    """Compare a provider's export of its costs with the record, by day and model; fails when they differ by a cent."""
    settings = config.load(overrides={"data": data})
    with Store.open(settings.record) as store:
        found = compare(store, invoice)
    if as_json:
        output.emit(_plain(found))
    else:
        _show(found)
    if not found.same:
        raise typer.Exit(1)


def _show(found: Reconciliation) -> None:
    rows = [
        [line.day, line.model, line.invoice_usd, line.record_usd, str(line.calls), str(line.unpriced or "")]
        for line in found.lines
    ]
    columns = ["day", "model", "invoice USD", "record USD", "calls", "without price"]
    output.show_table(f"{found.provider}: invoice and record", columns, rows)
    different = sum(not line.same for line in found.lines)
    say("Equal to the cent." if found.same else f"{different} of {len(found.lines)} lines differ.")


def _plain(found: Reconciliation) -> dict[str, object]:
    lines = [{field: getattr(line, field) for field in (*line.__struct_fields__, "same")} for line in found.lines]
    return {"provider": found.provider, "same": found.same, "lines": lines}


def moment(day: str | None) -> int:
    """Return the beginning of a day, UTC; of none, the beginning of time."""
    if day is None:
        return 0
    try:
        return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * MICRO
    except ValueError:
        raise UsageError(f"--since {day}: no day; write it as 2026-11-01") from None
