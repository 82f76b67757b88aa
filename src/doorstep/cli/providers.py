"""``doorstep providers``: who can be asked for models, whether their keys are there, and whether they answer."""

import os
import re
import time
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import typer

from doorstep import config, ids
from doorstep.cli import local_server, output
from doorstep.cli.output import Json, say
from doorstep.cli.working import Data
from doorstep.config import KNOWN_PROVIDERS, ProviderKind, ProviderSettings, Settings
from doorstep.errors import NotFound, ProviderError, UsageError
from doorstep.fetch import Fetched, fetch
from doorstep.improve.plan import write_atomic
from doorstep.store import Store
from doorstep.types import Call
from doorstep.value.prices import MICRO

FAKE = "fake:"
QUESTION = "Say hello."
MOST_TOKENS = 16  # fewer are refused by some
RECORDED_S = 10.0  # to wait for a call to be in the store

# A label's value is written as a string of JSON is, but for its quotes.
_CIRCUIT = re.compile(
    r'^doorstep_circuit_state\{provider=("(?:[^"\\]|\\.)*"),model=("(?:[^"\\]|\\.)*"),state="(\w+)"\} 1', re.MULTILINE
)
_STATES = {"closed": "fails lately", "open": "not asked", "half_open": "being tried"}

_BARE = re.compile(r"[A-Za-z0-9_-]+")

Name = Annotated[str, typer.Argument(help="A provider, or one of its models as PROVIDER/MODEL.")]
NewName = Annotated[str, typer.Argument(help="Name of the provider: its models are NAME/MODEL.")]
BaseUrl = Annotated[str | None, typer.Option(help="Its address, with the version in it; asked for if not given.")]
Kind = Annotated[ProviderKind | None, typer.Option(help="Whose API it has.")]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable that holds its key.")]
Option = Annotated[list[str] | None, typer.Option(help="For any-llm: provider=bedrock, region_name=eu-central-1, ….")]


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider as ``list`` shows it. ``keys``: which of its variables are set; ``circuits``: states by model."""

    name: str
    kind: str
    address: str
    keys: dict[str, bool]
    circuits: dict[str, str] | None  # None: no server runs that would know


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a check. ``cost_microusd`` is None where the price is not known, or nothing was answered."""

    model: str
    ok: bool
    status: int
    said: str
    seconds: float
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_microusd: int | None = None


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="See the providers and whether they answer; add one.", invoke_without_command=True)
    group.callback()(_list_by_itself)
    group.command("list", epilog="Example: doorstep providers list")(show)
    group.command(epilog="Example: doorstep providers check openai/gpt-5-mini")(check)
    group.command(epilog="Example: doorstep providers add house --base-url https://models.example.com/v1")(add)
    app.add_typer(group, name="providers", epilog="Example: doorstep providers check openai/gpt-5-mini")


def _list_by_itself(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show()


def show(data: Data = None, as_json: Json = False) -> None:
    """List the providers: kind, address, which keys are there, and which models a running server does not ask now."""
    settings = config.load(overrides={"data": data})
    server = local_server.existing(settings.data)
    circuits = None if server is None else _circuits(server)
    found = [_listed(name, each, circuits) for name, each in sorted(settings.providers.items())]
    if as_json:
        output.emit({"server": server and server.url, "providers": found})
        return
    rows = [[each.name, each.kind, each.address, _keys(each.keys), _states(each.circuits)] for each in found]
    output.show_table("Providers", ["name", "kind", "address", "keys", "trouble"], rows)
    without = [f"{name} ({known.key_env})" for name, known in KNOWN_PROVIDERS.items() if name not in settings.providers]
    if without:
        say(f"Known too, and there as soon as its key is in the environment: {', '.join(without)}.")
    if server is None:
        say("No server runs on this data folder, so nothing is known of trouble.")


def check(name: Name, data: Data = None, as_json: Json = False) -> None:
    """Make one tiny call through the gateway and tell what came back, what it cost, and how long it took.

    The call is recorded like any other. Without a model it goes to the provider's first one in doorstep.toml.
    """
    settings = config.load(overrides={"data": data})
    model = _model(settings, name)
    with local_server.running(settings) as address, Store.open(settings.record) as store:
        run_id = ids.new_id("run")
        began = time.monotonic()
        answer = _ask(address, run_id, model)
        seconds = time.monotonic() - began
        call = _recorded(store, run_id) if answer.status == 200 else None
    checked = Checked(
        model=model,
        ok=answer.status == 200,
        status=answer.status,
        said=_said(answer),
        seconds=round(seconds, 3),
        input_tokens=call.input_tokens if call else None,
        output_tokens=call.output_tokens if call else None,
        cost_microusd=call.cost_microusd if call else None,
    )
    if as_json:
        output.emit(checked)
    else:
        _tell(checked)
    if not checked.ok:
        raise typer.Exit(1)


def add(
    name: NewName, base_url: BaseUrl = None, kind: Kind = None, key_env: KeyEnv = None, option: Option = None
) -> None:
    """Write a provider into doorstep.toml. What is not given is asked for; a key itself is never written."""
    file = Path(config.FILE)
    if name in config.load(file).providers:
        raise UsageError(f"there is a provider '{name}' already; change it in {file}")
    if not _BARE.fullmatch(name):
        raise UsageError(f"'{name}': a provider's name has letters, digits, - and _ only")
    fields: dict[str, Any] = {"base_url": base_url, "kind": kind, "key_env": key_env}
    if option:
        fields |= {"kind": "any-llm", "options": dict(map(_pair, option))}
    elif base_url is None:
        fields = _asked(fields)
    fields = {field: value for field, value in fields.items() if value}
    try:
        msgspec.convert(fields, ProviderSettings)
    except msgspec.ValidationError as error:
        raise UsageError(f"[providers.{name}] cannot work: {error}") from None
    before = file.read_text("utf-8").rstrip() if file.exists() else ""
    write_atomic(file, "\n".join([*([before, ""] if before else []), *_table(name, fields), ""]).encode())
    say(
        f"{file} has [providers.{name}] now. A server that runs has to be started anew. "
        f"Then: doorstep providers check {name}/MODEL"
    )


def _asked(fields: dict[str, Any]) -> dict[str, Any]:
    """Ask for what was not given."""
    kinds = ", ".join(kind for kind in get_args(ProviderKind) if kind != "any-llm")  # that one takes --option
    questions = {
        "base_url": ("Its address, with the version in it, such as https://models.example.com/v1", None),
        "kind": (f"Whose API it has ({kinds})", "compatible"),
        "key_env": ("Environment variable that holds its key; Enter for none", ""),
    }
    return {
        field: given or typer.prompt(questions[field][0], questions[field][1], err=True, show_default=False)
        for field, given in fields.items()
    }


def _pair(given: str) -> tuple[str, str]:
    key, equals, value = given.partition("=")
    if not (equals and _BARE.fullmatch(key)):
        raise UsageError(f"--option {given}: write it as name=value, such as region_name=eu-central-1")
    return key, value


def _table(name: str, fields: dict[str, Any]) -> list[str]:
    """Return the lines of a provider's table."""
    lines = [f"{field} = {_toml(value)}" for field, value in fields.items() if field != "options"]
    pairs = [f"{key} = {_toml(value)}" for key, value in fields.get("options", {}).items()]
    return [f"[providers.{name}]", *lines, *([f"options = {{ {', '.join(pairs)} }}"] if pairs else [])]


def _toml(text: str) -> str:
    """Return a string as TOML has it, which is as JSON has it."""
    return msgspec.json.encode(text).decode()


# The list


def _listed(name: str, provider: ProviderSettings, circuits: dict[str, dict[str, str]] | None) -> Provider:
    options = provider.options or {}
    return Provider(
        name=name,
        kind="fake" if provider.base_url.startswith(FAKE) else provider.kind,
        address=provider.base_url or f"{options['provider']}'s own",
        keys={label: bool(os.environ.get(label, "").strip()) for label in provider.key_names},
        circuits=None if circuits is None else circuits.get(name, {}),
    )


def _circuits(server: local_server.Address) -> dict[str, dict[str, str]]:
    """Return the states of the models that failed lately, by provider and model, as the server counts them."""
    found: dict[str, dict[str, str]] = {}
    page = fetch(f"{server.url}/metrics", headers=_own_key(server)).text
    for provider, model, state in _CIRCUIT.findall(page):
        found.setdefault(msgspec.json.decode(provider), {})[msgspec.json.decode(model)] = state
    return found


def _keys(keys: dict[str, bool]) -> str:
    return "; ".join(f"{label} {'found' if there else 'missing'}" for label, there in keys.items()) or "none named"


def _states(circuits: dict[str, str] | None) -> str:
    return "; ".join(f"{model} {_STATES[state]}" for model, state in (circuits or {}).items())


# The check


def _model(settings: Settings, name: str) -> str:
    """Return the model to ask, ``PROVIDER/MODEL``."""
    provider, _, model = name.partition("/")
    if provider not in settings.providers:
        known = KNOWN_PROVIDERS.get(provider)
        how = f"set {known.key_env}" if known else f"write [providers.{provider}] into {config.FILE}"
        there = ", ".join(sorted(settings.providers)) or "none"
        raise NotFound(f"there is no provider '{provider}': {how}. There is: {there}.")
    if model:
        return name
    if settings.providers[provider].base_url.startswith(FAKE):
        return f"{provider}/echo"
    aliases = settings.models.values()
    targets = [each if isinstance(each, str) else each.model for alias in aliases for each in alias.targets]
    named = [*targets, *(each for alias in aliases for each in alias.fallback), *settings.prices.models]
    found = next((each for each in named if each.startswith(f"{provider}/")), None)
    if found is None:
        raise UsageError(
            f"{config.FILE} names no model of {provider}; say which: doorstep providers check {name}/MODEL"
        )
    return found


def _ask(address: local_server.Address, run_id: str, model: str) -> Fetched:
    """Ask in Anthropic's format: it says the limit of tokens in one way, which is then put in each provider's own."""
    body = {"model": model, "max_tokens": MOST_TOKENS, "messages": [{"role": "user", "content": QUESTION}]}
    return fetch(f"{address.url}/runs/{run_id}/v1/messages", body, headers=_own_key(address), timeout_s=900)


def _own_key(address: local_server.Address) -> dict[str, str]:
    return {"authorization": f"Bearer {address.key}"}


def _recorded(store: Store, run_id: str) -> Call | None:
    """Return the call of a run, which is in the store a moment after its answer."""
    deadline = time.monotonic() + RECORDED_S
    while not (found := store.select(Call, run_id=run_id)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found[0] if found else None


def _said(answer: Fetched) -> str:
    """Return the text of an answer, or what an error says."""
    try:
        said: Any = answer.json()
        if "error" in said:
            return str(said["error"]["message"])
        return "".join(block.get("text", "") for block in said["content"])
    except (ValueError, LookupError, AttributeError, TypeError):
        raise ProviderError(f"Doorstep's own answer cannot be read: {answer.text[:200]}") from None


def _tell(checked: Checked) -> None:
    if not checked.ok:
        say(f"{checked.model} failed with {checked.status} after {checked.seconds:.2f} s: {checked.said}", style="red")
        return
    cost = checked.cost_microusd
    price = "at a price that is not known" if cost is None else f"for {cost / MICRO:.6f} USD"
    tokens = f"{checked.input_tokens} tokens in, {checked.output_tokens} out"
    say(f"{checked.model} answered in {checked.seconds:.2f} s, {tokens}, {price}:")
    typer.echo(checked.said)
