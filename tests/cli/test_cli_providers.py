"""``doorstep providers``: the list, a check by a real call through a real server, and the table that is written."""

import io
from pathlib import Path

import pytest

from doorstep import config
from doorstep.cli import local_server
from doorstep.store import Store
from doorstep.types import Call

SETTINGS = """[serve]
model = ""
[traffic]
retries = 9
backoff_s = 0
[providers.fake]
base_url = "fake:"
[providers.house]
base_url = "http://127.0.0.1:9/v1"
key_env = ["HOUSE_KEY", "HOUSE_KEY_2"]
[providers.aws]
kind = "any-llm"
options = {provider = "bedrock"}
[prices.models."fake/echo"]
input = 1.0
output = 2.0
"""


@pytest.fixture
def settings(doorstep, monkeypatch):
    for known in config.KNOWN_PROVIDERS.values():
        monkeypatch.delenv(str(known.key_env), raising=False)
    Path("doorstep.toml").write_text(SETTINGS)
    return config.load()


def listed(doorstep):
    return {each["name"]: each for each in doorstep("providers", "list", "--json").json["providers"]}


def test_the_list_says_where_providers_are_and_which_keys_are_there(doorstep, settings, monkeypatch):
    monkeypatch.setenv("HOUSE_KEY", "secret")
    found = listed(doorstep)
    assert found["house"]["keys"] == {"HOUSE_KEY": True, "HOUSE_KEY_2": False}
    assert [(found[name]["kind"], found[name]["address"]) for name in ("aws", "fake", "house")] == [
        ("any-llm", "bedrock's own"), ("fake", "fake:"), ("compatible", "http://127.0.0.1:9/v1"),
    ]  # fmt: skip


def test_by_itself_it_lists_and_shows_no_key(doorstep, settings, monkeypatch):
    monkeypatch.setenv("HOUSE_KEY", "secret")
    ended = doorstep("providers")
    assert (ended.code, "house" in ended.out, "missing" in ended.out) == (0, True, True)
    assert "secret" not in ended.out + ended.err
    assert "openai (OPENAI_API_KEY)" in ended.err


def test_a_running_server_says_which_models_it_does_not_ask(doorstep, settings):
    assert listed(doorstep)["fake"]["circuits"] is None
    with local_server.running(settings):
        assert listed(doorstep)["fake"]["circuits"] == {}
        doorstep("providers", "check", "fake/empty")
        assert listed(doorstep)["fake"]["circuits"] == {"empty": "open"}
        assert "empty not asked" in " ".join(doorstep("providers").out.split())


def test_a_check_says_what_came_back_and_what_it_cost(doorstep, settings):
    ended = doorstep("providers", "check", "fake")
    assert (ended.code, ended.out) == (0, "Say hello.\n")
    assert "fake/echo answered" in ended.err
    assert "2 tokens in, 2 out, for 0.000006 USD" in ended.err


def test_a_check_is_recorded_like_any_other_call(doorstep, settings):
    found = doorstep("providers", "check", "fake/echo", "--json").json
    with Store.open(settings.record) as store:
        (call,) = store.select(Call)
    assert (call.provider, call.served_model) == ("fake", "echo")
    assert (found["ok"], found["status"], found["cost_microusd"]) == (True, 200, call.cost_microusd)


def test_a_check_that_fails_says_why(doorstep, settings):
    ended = doorstep("providers", "check", "house/m")
    assert (ended.code, ended.out) == (1, "")
    assert "house/m failed with 502" in ended.err
    assert "cannot be reached" in ended.err


def test_a_check_asks_the_first_model_that_the_settings_name(doorstep, settings):
    Path("doorstep.toml").write_text(f'{SETTINGS}[models.small]\ntargets = ["house/tiny-1"]\n')
    assert doorstep("providers", "check", "house", "--json").json["model"] == "house/tiny-1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "mistral"], "set MISTRAL_API_KEY"),
        (["check", "nobody"], "write [providers.nobody] into doorstep.toml"),
        (["check", "house"], "doorstep providers check house/MODEL"),
        (["add", "fake", "--base-url", "http://h/v1"], "there is a provider 'fake' already"),
        (["add", "a.b", "--base-url", "http://h/v1"], "letters, digits"),
        (["add", "new", "--option", "bedrock"], "write it as name=value"),
        (["add", "new", "--option", "region_name=x"], "needs options = {provider"),
    ],
)
def test_what_cannot_work_is_explained(doorstep, settings, arguments, said):
    ended = doorstep("providers", *arguments)
    assert (ended.code, said in ended.err) == (2, True)
    assert Path("doorstep.toml").read_text() == SETTINGS


def test_a_provider_is_added_and_the_rest_of_the_file_stays(doorstep, settings):
    url = 'http://127.0.0.1:9/"v1'
    assert doorstep("providers", "add", "new", "--base-url", url, "--kind", "anthropic", "--key-env", "NEW").code == 0
    assert Path("doorstep.toml").read_text().startswith(SETTINGS)
    added = config.load().providers["new"]
    assert (added.base_url, added.kind, added.key_env) == (url, "anthropic", "NEW")


def test_one_that_a_library_speaks_to_is_added_by_its_options(doorstep):
    assert doorstep("providers", "add", "aws", "--option", "provider=bedrock", "--option", "region_name=eu-1").code == 0
    added = config.load().providers["aws"]
    assert (added.kind, added.options) == ("any-llm", {"provider": "bedrock", "region_name": "eu-1"})


def test_what_is_not_given_is_asked_for(doorstep, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("http://127.0.0.1:9/v1\n\nNEW_KEY\n"))
    assert doorstep("providers", "add", "new").code == 0
    assert config.load().providers["new"] == config.ProviderSettings(
        base_url="http://127.0.0.1:9/v1", kind="compatible", key_env="NEW_KEY"
    )
