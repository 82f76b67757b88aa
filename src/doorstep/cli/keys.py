"""``doorstep keys``: who may call a Doorstep that other machines can reach, on which terms, and who changed them.

The commands work on the data folder, with or without a server on it; a running one sees a change within a second.
"""

import getpass
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
import typer

from doorstep import config, ids
from doorstep.cli import output
from doorstep.cli.output import Json, say
from doorstep.cli.working import Data
from doorstep.errors import UsageError
from doorstep.gateway import keys as gateway_keys
from doorstep.gateway.audit import Journal, entries, shown
from doorstep.gateway.keys import Keys, read_terms
from doorstep.store import Store

NONE = "none"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

KeyId = Annotated[str, typer.Argument(help="The key, as list names it.")]
Role = Annotated[
    gateway_keys.Role | None, typer.Option(help="admin: everything; member: calls and feedback; viewer: reading.")
]
Model = Annotated[list[str] | None, typer.Option(help="Pattern of models that it may use, such as 'openai/*'.")]
Requests = Annotated[str | None, typer.Option(help="Most requests a minute.")]
Tokens = Annotated[str | None, typer.Option(help="Most tokens a minute.")]
Day = Annotated[str | None, typer.Option(help="Budget of a day (UTC), such as 2.50.")]
Month = Annotated[str | None, typer.Option(help="Budget of a month (UTC).")]
Expires = Annotated[str | None, typer.Option(help="When it ends: 30d, 12h, or a date such as 2027-01-31.")]
Workflow = Annotated[str | None, typer.Option(help="The workflow that its calls belong to.")]
Customer = Annotated[str | None, typer.Option(help="Whose calls they are, unless a call says so itself.")]
Retention = Annotated[str | None, typer.Option(help="Days after which what its calls said is deleted.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="Make, change, rotate and revoke the keys of callers.", no_args_is_help=True)
    group.command(epilog="Example: doorstep keys create --name inbox-agent --model 'openai/*' --usd-per-day 2.50")(
        create
    )
    group.command("list", epilog="Example: doorstep keys list")(show)
    group.command("set", epilog="Example: doorstep keys set key_01k… --usd-per-day 5 --requests-per-minute none")(
        change
    )
    group.command(epilog="Example: doorstep keys rotate key_01k… --grace 1h")(rotate)
    group.command(epilog="Example: doorstep keys revoke key_01k…")(revoke)
    group.command(epilog="Example: doorstep keys log")(log)
    app.add_typer(group, name="keys", epilog="Example: doorstep keys create --name inbox-agent")


def create(
    name: Annotated[str, typer.Option(help="Whose key it is.")] = "default",
    role: Role = None,
    model: Model = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    usd_per_day: Day = None,
    usd_per_month: Month = None,
    expires: Expires = None,
    workflow: Workflow = None,
    customer: Customer = None,
    retention_days: Retention = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it. It is kept as a digest only: this is the one time that it can be seen."""
    given = _given(
        name=name,
        role=role,
        model=model,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        usd_per_day=usd_per_day,
        usd_per_month=usd_per_month,
        expires=expires,
        workflow=workflow,
        customer=customer,
        retention_days=retention_days,
    )
    with _opened(data) as (keys, store):
        key, secret = keys.create(read_terms(given))
        if as_json:
            output.emit({**shown([key], store)[0], "key": secret})
            return
    typer.echo(secret)


def show(data: Data = None, as_json: Json = False) -> None:
    """List the keys: whose they are, what they may and have spent, never the keys themselves."""
    with _opened(data) as (keys, store):
        found = shown(keys.all(), store)
    if as_json:
        output.emit({"keys": found})
        return
    rows = [
        [key["id"], key["name"], key["role"], "; ".join(_limits(key)), _usd(key["spent_month_microusd"])]
        for key in found
    ]
    output.show_table("Keys", ["id", "name", "role", "limits", "this month"], rows)


def change(
    key_id: KeyId,
    name: Annotated[str | None, typer.Option(help="Whose key it is.")] = None,
    role: Role = None,
    model: Model = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    usd_per_day: Day = None,
    usd_per_month: Month = None,
    expires: Expires = None,
    workflow: Workflow = None,
    customer: Customer = None,
    retention_days: Retention = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Change what a key may. What is not given stays; the value none takes a limit away."""
    changes = _given(
        name=name,
        role=role,
        model=model,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        usd_per_day=usd_per_day,
        usd_per_month=usd_per_month,
        expires=expires,
        workflow=workflow,
        customer=customer,
        retention_days=retention_days,
    )
    if not changes:
        raise UsageError("nothing to change was given; doorstep keys set --help shows what there is")
    with _opened(data) as (keys, store):
        found = shown([keys.change(key_id, changes)], store)[0]
    if as_json:
        output.emit(found)
    else:
        say(f"{key_id} is changed: {'; '.join(_limits(found)) or 'no limits'}.")


def rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(help="How long the one before still counts: 10m, 1h, 2d, or 0s.")] = "1h",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Give a key a new secret and print it; what it may and has spent stays."""
    try:
        seconds = _seconds(grace)
    except ValueError:
        raise UsageError(f"--grace {grace}: give a time such as 10m, 1h, 2d or 0s") from None
    with _opened(data) as (keys, _):
        key, secret = keys.rotate(key_id, seconds)
    if as_json:
        output.emit({"id": key.key_id, "key": secret, "grace_s": seconds})
    else:
        typer.echo(secret)


def revoke(key_id: KeyId, data: Data = None, as_json: Json = False) -> None:
    """Take a key away; a running server refuses it within a second."""
    with _opened(data) as (keys, _):
        keys.revoke(key_id)
        left = len(keys.all())
    if as_json:
        output.emit({"id": key_id, "revoked": True})
    else:
        say(f"{key_id} is revoked." + ("" if left else " It was the last: on this machine, callers need no key now."))


def log(
    limit: Annotated[int, typer.Option(help="Most entries to show, the newest first.")] = 100,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show who made, changed, rotated and revoked keys."""
    with _opened(data) as (_, store):
        found = entries(store, limit)
    if as_json:
        output.emit({"entries": found})
        return
    rows = [
        [entry.subject, f"{_moment(entry.at_us):%Y-%m-%d %H:%M:%S}", entry.actor, entry.action, _detail(entry.detail)]
        for entry in found
    ]
    output.show_table("Changes", ["key", "at (UTC)", "by", "what", "detail"], rows)


@contextmanager
def _opened(data: str | None) -> Iterator[tuple[Keys, Store]]:
    """Yield the keys and the store of a data folder; what changes is noted in the log."""
    settings = config.load(overrides={"data": data})
    with Store.open(settings.record) as store:
        yield Keys(settings.data, note=Journal(store, f"cli:{user_name()}").note), store


def user_name() -> str:
    """Return who works on this machine, for the log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _given(**options: str | list[str] | None) -> dict[str, Any]:
    """Return the terms that were given as options, as plain values; ``none`` is no limit."""
    given: dict[str, Any] = {}
    for option, value in options.items():
        if value is None:
            continue
        field, read = _READ.get(option, (option, str))
        none = value in (NONE, [NONE])
        try:
            given[field] = ([] if option == "model" else None) if none else read(value)
        except (ValueError, InvalidOperation):
            raise UsageError(
                f"--{option.replace('_', '-')} {value}: {_WANTED.get(option, 'give a whole number')}"
            ) from None
    return given


def _microusd(text: str) -> int:
    return round(Decimal(text.removeprefix("$")) * 1_000_000)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if match is None:
        raise ValueError(text)
    return float(match[1]) * SECONDS[match[2]]


def _end(text: str) -> int:
    """Return the moment of ``30d`` from now, or the beginning of a date, UTC."""
    try:
        return ids.now_us() + round(_seconds(text) * 1e6)
    except ValueError:
        moment = datetime.fromisoformat(text)
    return round(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1e6)


_READ: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "model": ("models", list),
    "requests_per_minute": ("requests_per_minute", int),
    "tokens_per_minute": ("tokens_per_minute", int),
    "usd_per_day": ("day_microusd", _microusd),
    "usd_per_month": ("month_microusd", _microusd),
    "expires": ("expires_us", _end),
    "retention_days": ("retention_days", int),
}
_WANTED = {
    "usd_per_day": "give dollars such as 2.50",
    "usd_per_month": "give dollars such as 50",
    "expires": "give a time such as 30d or 12h, or a date such as 2027-01-31",
}


def _limits(key: dict[str, Any]) -> Iterator[str]:
    """Yield a key's limits as a person reads them."""
    yield from key["models"]
    for field, unit in (("requests_per_minute", "requests/min"), ("tokens_per_minute", "tokens/min")):
        if key[field] is not None:
            yield f"{key[field]} {unit}"
    for field, unit in (("day_microusd", "day"), ("month_microusd", "month")):
        if key[field] is not None:
            yield f"{_usd(key[field])}/{unit}"
    if key["workflow"] is not None:
        yield f"workflow {key['workflow']}"
    if key["customer"] is not None:
        yield f"customer {key['customer']}"
    if key["retention_days"] is not None:
        yield f"kept {key['retention_days']} days"
    if key["expires_us"] is not None:
        yield f"{'ended' if key['expires_us'] <= ids.now_us() else 'until'} {_moment(key['expires_us']):%Y-%m-%d %H:%M}"


def _detail(detail: dict[str, Any]) -> str:
    return msgspec.json.encode({name: value for name, value in detail.items() if value}).decode()


def _usd(microusd: int) -> str:
    return f"${microusd / 1e6:,.2f}"


def _moment(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us / 1e6, UTC)
