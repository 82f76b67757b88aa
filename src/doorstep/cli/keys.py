"""``doorstep keys``: who may call a Doorstep that other machines can reach."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from doorstep import config
from doorstep.cli import output
from doorstep.cli.output import Json, say
from doorstep.cli.working import Data


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="Make, list and revoke the keys of callers.", no_args_is_help=True)
    group.command(epilog="Example: doorstep keys create --name inbox-agent")(create)
    group.command("list", epilog="Example: doorstep keys list")(show)
    group.command(epilog="Example: doorstep keys revoke key_01k…")(revoke)
    app.add_typer(group, name="keys", epilog="Example: doorstep keys create --name inbox-agent")


def create(
    name: Annotated[str, typer.Option(help="Whose key it is.")] = "default", data: Data = None, as_json: Json = False
) -> None:
    """Make a key and print it. It is kept as a digest only: this is the one time that it can be seen."""
    from doorstep.gateway.keys import Keys

    secret = Keys(config.load(overrides={"data": data}).data).create(name)
    if as_json:
        output.emit({"name": name, "key": secret})
    else:
        typer.echo(secret)


def show(data: Data = None, as_json: Json = False) -> None:
    """List the keys: whose they are and since when, never the keys themselves."""
    from doorstep.gateway.keys import Keys

    made = Keys(config.load(overrides={"data": data}).data).all()
    if as_json:
        output.emit({"keys": [{"id": key.key_id, "name": key.name, "created_us": key.created_us} for key in made]})
        return
    rows = [[key.key_id, key.name, f"{datetime.fromtimestamp(key.created_us / 1e6, UTC):%Y-%m-%d}"] for key in made]
    output.show_table("Keys", ["id", "name", "since"], rows)


def revoke(key_id: Annotated[str, typer.Argument(help="The key, as list names it.")], data: Data = None) -> None:
    """Take a key away; a running server refuses it from the next call on."""
    from doorstep.gateway.keys import Keys

    Keys(config.load(overrides={"data": data}).data).revoke(key_id)
    say(f"{key_id} is revoked.")
