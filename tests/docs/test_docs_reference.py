"""The reference says what the code says: settings, addresses, JSON, the data folder."""

import json
import re

import msgspec
import pytest
from gateway_parts import TellingEngine, settings_for
from pages import REFERENCE, ROOT, blocks, section, table_rows
from starlette.routing import Mount
from starlette.testclient import TestClient

from doorstep import config
from doorstep.cli.report import Report
from doorstep.cli.working import batch_report
from doorstep.errors import BadInput, EngineError, EngineUnavailable, NotFound, ProviderError, UsageError
from doorstep.evaluation.evaluate import Evaluation
from doorstep.gateway import door
from doorstep.gateway.description import OPERATIONS
from doorstep.gateway.dialects import openai_videos, table
from doorstep.gateway.exchange import status_of
from doorstep.gateway.keys import Terms
from doorstep.gateway.migration import history
from doorstep.gateway.providers.http import KINDS
from doorstep.server import create_app
from doorstep.store.erasure import Erased
from doorstep.types import Decision, Route
from doorstep.value.invoices import Reconciliation
from doorstep.value.repricing import Repriced
from doorstep.workflows.workflow import load_workflow

SETTINGS = section(REFERENCE, "## Settings")
ADDRESSES = section(REFERENCE, "## Addresses")
RUN = "/runs/{run_id}"


WITH_VARIABLES = {
    "serve": config.ServeSettings,
    "store": config.StoreSettings,
    "prices": config.PriceSettings,
    "traffic": config.TrafficSettings,
    "cache": config.CacheSettings,
    "limits": config.LimitSettings,
    "training": config.TrainingSettings,
    "telemetry": config.TelemetrySettings,
}
VALUES = {  # of those that are no numbers
    "unknown_price": "allow",
    "content": "true",
    "otlp": "http://127.0.0.1:7",
    "device": "cuda",
    "quantise": "nf4",
}
NAMED = {
    "providers": config.ProviderSettings,
    "models": config.ModelSettings,
    "workflows": config.WorkflowSettings,
}
SHOWN = {msgspec.NODEFAULT: "required", "": "required", None: "none", (): "all"}


def _settings_rows(part: str) -> set[tuple[str, ...]]:
    rows = table_rows(SETTINGS.partition(f"\n`[{part}]`")[2].partition("\n\n`[")[0])
    cells = {tuple(cell.strip("`") for cell in row[:-1]) for row in rows}
    return cells - {("setting", "default", "environment"), ("setting", "default")}


def _is_table(field) -> bool:
    return field.default_factory is dict


def test_every_section_of_settings_is_on_the_page():
    assert {*WITH_VARIABLES, *NAMED} == set(config.Settings.__struct_fields__)


@pytest.mark.parametrize("part", WITH_VARIABLES)
def test_every_setting_stands_with_its_default_and_its_variable(part):
    fields = [field for field in msgspec.structs.fields(WITH_VARIABLES[part]) if not _is_table(field)]
    wanted = {(field.name, json.dumps(field.default), f"DOORSTEP_{part}_{field.name}".upper()) for field in fields}
    assert _settings_rows(part) == wanted


@pytest.mark.parametrize("part", WITH_VARIABLES)
def test_every_variable_of_the_page_sets_what_it_says(part, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, _, variable in _settings_rows(part):
        value = VALUES.get(name, "7")
        monkeypatch.setenv(variable, value)
        assert str(getattr(getattr(config.load(), part), name)).lower() in (value, f"{value}.0")


@pytest.mark.parametrize("part", NAMED)
def test_every_setting_of_what_has_a_name_stands_with_its_default(part):
    fields = msgspec.structs.fields(NAMED[part])
    wanted = {(each.name, "none" if each.default_factory is list else _default(each)) for each in fields}
    assert _settings_rows(f"{part}.NAME") == wanted


def _default(field) -> str:
    return SHOWN.get(field.default, str(field.default))


def test_every_part_of_a_price_is_named():
    text = SETTINGS.partition('\n`[prices.models."PROVIDER/MODEL"]`')[2].partition("\n\n")[0]
    assert set(config.ModelPrice.__struct_fields__) <= set(re.findall(r"`(\w+)`", text))


def test_every_provider_that_needs_only_its_key_is_named():
    for name, provider in config.KNOWN_PROVIDERS.items():
        assert f"`{name}`" in SETTINGS
        assert f"`{provider.key_env}`" in SETTINGS


def test_toml_in_the_page_is_a_file_of_settings(tmp_path):
    for text in blocks(REFERENCE, "toml"):
        file = tmp_path / "doorstep.toml"
        file.write_text(text, "utf-8")
        assert config.load(file) != config.Settings()


@pytest.fixture
def served(tmp_path) -> set[tuple[str, str]]:
    """Method and path of all that a server with a local model answers; calls of models are in the dialects' table."""

    async def start(_settings):
        return TellingEngine(tmp_path / "model")

    app = create_app(settings_for(tmp_path / "data"), "http://127.0.0.1:8000", start)
    with TestClient(app):
        routes = list(app.router.routes)
    mounted = [(route.path, inner) for route in routes if isinstance(route, Mount) for inner in route.routes]
    own = [("", route) for route in routes if not isinstance(route, Mount)]
    return {("POST", path) for path in table.paths()} | {
        (method, prefix + route.path.replace(":path", ""))
        for prefix, route in own + mounted
        if "{path:path}" not in route.path
        for method in route.methods - {"HEAD"}
    }


def test_every_address_stands_with_its_method_and_no_other(served):
    rows = table_rows(ADDRESSES)
    named = {tuple(row[0].strip("`").split(" ")) for row in rows if " /" in row[0]}
    training = [row for row in rows if row[0] in ("`GET`", "`POST`", "`PUT`", "`DELETE`")]
    for method, paths in training:
        named |= {(method.strip("`"), f"/api/v1{path.strip('`')}") for path in paths.split(" · ")}
    assert named == {(method, path) for method, path in served if not path.startswith(RUN)}


def test_the_description_has_every_address_but_those_of_other_formats(served):
    others = (RUN, "/api/v1", "/v0", "/v1beta", "/v1/traces", "/oai")
    wanted = {(method, path) for method, path in served if not path.startswith(others)}
    assert {(each.method.upper(), each.path) for each in OPERATIONS} == wanted


def test_models_are_called_for_a_run_at_the_same_addresses(served):
    scoped = {(method, path.removeprefix(RUN)) for method, path in served if path.startswith(RUN)}
    assert scoped
    assert scoped <= served
    assert all(door.run_of(door.address_of(f"/runs/r1{path}".encode()), {}) == "r1" for path in table.paths())


def test_every_dialect_stands_with_its_address_and_who_takes_it():
    page = section(REFERENCE, "## Dialects")
    rows = {tuple(cell.strip("`") for cell in row) for row in table_rows(page)[1:]}
    wanted = {
        (name, dialect.PATH, ", ".join(kind for kind, api in KINDS.items() if name.startswith(api.speaks)))
        for name, dialect in table.DIALECTS.items()
        if dialect is not openai_videos  # jobs, not calls that pass
    }
    assert rows == wanted
    assert set(re.findall(r"`(\S+?)`", page.partition("\nChats,")[2].partition(". ")[0])) == table.CHATS


def test_the_headers_are_those_of_the_code():
    code = "".join(file.read_text("utf-8") for file in (ROOT / "src" / "doorstep" / "gateway").rglob("*.py"))
    name = r"\bx-doorstep-[a-z-]+"
    assert set(re.findall(name, section(REFERENCE, "## Headers"))) == set(re.findall(name, code))


def test_every_code_of_an_error_stands_with_its_status():
    shown = {(row[0], code) for row in table_rows(section(REFERENCE, "## Errors")) for code in _codes(row[1])}
    failures = [
        BadInput("field", "wrong"), NotFound("no"), UsageError("no"), ProviderError("no"), ProviderError("no", 503),
        ProviderError("no", 504), EngineUnavailable("no"), EngineError("no", "server"), KeyError(),
    ]  # fmt: skip
    found = {(str(status), code or "") for status, code in map(status_of, failures)}
    assert found <= shown
    source = (ROOT / "src" / "doorstep" / "gateway" / "limits.py").read_text("utf-8")
    limits = set(re.findall(r"\b(4\d\d),\s+\"(\w+)\"", source))
    assert limits
    assert limits <= shown


def _codes(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell) or [""]


def _json_after(words: str) -> dict:
    text = section(REFERENCE, "## JSON of the commands").partition(words)[2]
    return json.loads(text.partition("```json\n")[2].partition("```")[0])


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("`doorstep eval`", Evaluation),
        ("`doorstep promote` and", Route),
        ("`doorstep decision show`", Decision),
        ("`doorstep demo` and", Report),
        ("`doorstep costs reprice`", Repriced),
        ("`doorstep import tensorzero --rows` and", history.Report),
    ],
)
def test_the_json_of_a_command_has_the_fields_that_it_prints(words, kind):
    shown = _json_after(words)
    assert list(shown) == list(kind.__struct_fields__)
    assert msgspec.convert(shown, kind)


@pytest.mark.parametrize(
    ("words", "kind", "more"),
    [
        ("`doorstep customers delete`", Erased, {"customer"}),
        ("`doorstep costs reconcile`", Reconciliation, {"same"}),
        ("`doorstep keys create`", Terms, {"id", "key", "created_us", "spent_day_microusd", "spent_month_microusd"}),
    ],
)
def test_the_json_of_a_command_has_the_fields_that_it_prints_and_some_more(words, kind, more):
    assert set(_json_after(words)) == {*kind.__struct_fields__, *more}


def test_the_json_of_the_report_is_whole_down_to_the_ground():
    shown = _json_after("`doorstep demo` and")
    assert msgspec.to_builtins(msgspec.convert(shown, Report, strict=False)) == shown


def test_the_json_of_a_batch_has_the_fields_that_it_prints():
    workflow = load_workflow(ROOT / "examples" / "tickets")
    assert list(_json_after("`doorstep run`.")) == list(batch_report(workflow, [], None))


def test_every_json_of_the_page_can_be_read():
    assert all(isinstance(json.loads(text), dict) for text in blocks(REFERENCE, "json"))
