"""``doorstep customers``: delete what a customer's runs and calls contain."""

from typing import Annotated

import msgspec
import typer

from doorstep import config, ids
from doorstep.cli import output
from doorstep.cli.keys import user_name
from doorstep.cli.output import Json, say
from doorstep.cli.working import Data
from doorstep.gateway.audit import Journal
from doorstep.gateway.media.artefacts import Artefacts
from doorstep.store import Store

Customer = Annotated[str, typer.Argument(help="The customer, as runs and calls name it.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="Delete what the record holds of a customer.", no_args_is_help=True)
    group.command(epilog="Example: doorstep customers delete acme")(delete)
    app.add_typer(group, name="customers", epilog="Example: doorstep customers delete acme")


def delete(name: Customer, data: Data = None, as_json: Json = False) -> None:
    """Delete what a customer's runs and calls contain: texts, tokens, feedback and files.

    Ids, times and sums stay, so that decisions can still be computed again. Adapters that were trained on the
    customer's records are named: what they learned is in their weights, so they are to be retired. A running server
    has its latest calls in files of its own too, and removes those as it goes on.
    """
    settings = config.load(overrides={"data": data})
    with Store.open(settings.record) as store:
        erased = store.delete_customer(name)
        subject = ids.digest(name.encode())  # the log keeps no name
        counts = {"runs": erased.runs, "calls": erased.calls}
        Journal(store, f"cli:{user_name()}").note("customer.delete", subject, counts)
    for artefact in erased.artefacts:
        Artefacts(settings.data).delete(artefact)
    if as_json:
        output.emit({"customer": name, **msgspec.to_builtins(erased)})
        return
    say(f"Deleted what {erased.runs} runs and {erased.calls} calls contained, and {len(erased.artefacts)} files.")
    for adapter in erased.adapters:
        say(f"Trained on the customer's records: {adapter}. Train its workflow again and promote the result.")
