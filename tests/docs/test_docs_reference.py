"""The reference says what the code says: settings, addresses, JSON, the data folder."""

import json

import msgspec
import pytest
from gateway_parts import TellingEngine, settings_for
from pages import REFERENCE, ROOT, blocks, section, table_rows
from starlette.routing import Mount
from starlette.testclient import TestClient

from doorstep import config
from doorstep.cli.report import Report
from doorstep.cli.working import batch_report
from doorstep.evaluation.evaluate import Evaluation
from doorstep.server import create_app
from doorstep.types import Decision, Route
from doorstep.workflows.workflow import load_workflow

SETTINGS = section(REFERENCE, "## Settings")
ADDRESSES = section(REFERENCE, "## Addresses")


def _settings_rows(part: str) -> set[tuple[str, ...]]:
    rows = table_rows(SETTINGS.partition(part)[2].partition("\n\n`[")[0])
    return {tuple(cell.strip("`") for cell in row[:-1]) for row in rows} - {("setting", "default", "environment")}


@pytest.mark.parametrize(("part", "kind"), [("serve", config.ServeSettings), ("prices", config.PriceSettings)])
def test_every_setting_stands_with_its_default_and_its_variable(part, kind):
    fields = [field for field in msgspec.structs.fields(kind) if field.default is not msgspec.NODEFAULT]  # no tables
    wanted = {(field.name, json.dumps(field.default), f"DOORSTEP_{part}_{field.name}".upper()) for field in fields}
    assert _settings_rows(f"\n`[{part}]`\n") == wanted


@pytest.mark.parametrize(("part", "kind"), [("serve", config.ServeSettings), ("prices", config.PriceSettings)])
def test_every_variable_of_the_page_sets_what_it_says(part, kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, _, variable in _settings_rows(f"\n`[{part}]`\n"):
        monkeypatch.setenv(variable, "7")
        assert str(getattr(getattr(config.load(), part), name)) in ("7", "7.0")


def test_every_setting_of_a_provider_stands_with_its_default():
    shown = {msgspec.NODEFAULT: "required", None: "none"}
    fields = msgspec.structs.fields(config.ProviderSettings)
    wanted = {(field.name, shown.get(field.default, str(field.default))) for field in fields}
    rows = table_rows(SETTINGS.partition("\n`[providers.NAME]`")[2])
    assert {(row[0].strip("`"), row[1].strip("`")) for row in rows} - {("setting", "default")} == wanted


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
    """Method and path of everything that a server with a local model answers."""

    async def start(_settings):
        return TellingEngine(tmp_path / "model")

    app = create_app(settings_for(tmp_path / "data"), "http://127.0.0.1:8000", start)
    with TestClient(app):
        routes = list(app.router.routes)
    mounted = [(route.path, inner) for route in routes if isinstance(route, Mount) for inner in route.routes]
    own = [("", route) for route in routes if not isinstance(route, Mount)]
    return {
        (method, prefix + route.path)
        for prefix, route in own + mounted
        if "{path:path}" not in route.path
        for method in route.methods - {"HEAD"}
    }


def test_every_address_stands_with_its_method_and_no_other(served):
    rows = table_rows(ADDRESSES)
    named = {tuple(row[0].strip("`").split(" ")) for row in rows if " /" in row[0]}
    training = [row for row in rows if row[0] in ("`GET`", "`POST`", "`DELETE`")]
    for method, paths in training:
        named |= {(method.strip("`"), f"/api/v1{path.strip('`')}") for path in paths.split(" · ")}
    assert named == served


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
    ],
)
def test_the_json_of_a_command_has_the_fields_that_it_prints(words, kind):
    shown = _json_after(words)
    assert list(shown) == list(kind.__struct_fields__)
    assert msgspec.convert(shown, kind)


def test_the_json_of_the_report_is_whole_down_to_the_ground():
    shown = _json_after("`doorstep demo` and")
    assert msgspec.to_builtins(msgspec.convert(shown, Report, strict=False)) == shown


def test_the_json_of_a_batch_has_the_fields_that_it_prints():
    workflow = load_workflow(ROOT / "examples" / "tickets")
    assert list(_json_after("`doorstep run`.")) == list(batch_report(workflow, [], None))


def test_every_json_of_the_page_can_be_read():
    assert all(isinstance(json.loads(text), dict) for text in blocks(REFERENCE, "json"))
