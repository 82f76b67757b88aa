"""``doorstep import`` and ``doorstep export`` as they are typed."""

import json
from pathlib import Path

import pytest

from doorstep import config
from doorstep.store import Store
from doorstep.types import Audit, Run

CONFIG = "model_list: [{model_name: fast, litellm_params: {model: gpt-5, temperature: 0}}]\n"
TENSORZERO = '[functions.f.variants.a]\ntype = "chat_completion"\nmodel = "openai::gpt-5"\nsystem_template = "x"\n'
INFERENCE = {
    "id": "0199c810-0000-7000-8000-000000000002",
    "function_name": "desk",
    "variant_name": "mini",
    "episode_id": "0199c810-0000-7000-8000-000000000001",
    "input": {"messages": [{"role": "user", "content": "from jane@example.com"}]},
    "output": [{"type": "text", "text": "Noted."}],
    "processing_time_ms": 250,
}
TRACE = {"id": "t1", "timestamp": "2026-10-05T10:00:00Z", "name": "orders", "input": "hi", "output": "ho"}
CHAT = {
    "messages": [
        {"role": "system", "content": "Desk."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
    ]
}


def write(name, *rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_settings_of_litellm_are_printed_and_the_rest_told(doorstep):
    Path("config.yaml").write_text(CONFIG)
    ended = doorstep("import", "litellm", "config.yaml")
    assert (ended.code, ended.out) == (0, '[models.fast]\ntargets = ["openai/gpt-5"]\n\n')
    assert "model_list[0].litellm_params.temperature: the client's request has to say it" in ended.err


def test_settings_are_written_but_never_over_a_file(doorstep, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    Path("config.yaml").write_text(CONFIG)
    told = doorstep("import", "litellm", "config.yaml", "--out", "doorstep.toml", "--json").json
    assert (Path("doorstep.toml").read_text(), len(told["notes"])) == (told["toml"], 1)
    assert config.load().models["fast"].targets == ["openai/gpt-5"]
    ended = doorstep("import", "litellm", "config.yaml", "--out", "doorstep.toml")
    assert (ended.code, "doorstep.toml exists" in ended.err) == (2, True)


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: [1"), ("config.yaml", "[]"), ("none.yaml", None)])
def test_what_is_no_configuration_is_told(doorstep, name, text):
    if text is not None:
        Path(name).write_text(text)
    assert doorstep("import", "litellm", name).code == 2
    assert doorstep("import", "tensorzero", name).code == 2


def test_tensorzero_is_taken_over_with_its_rows(doorstep):
    Path("tensorzero.toml").write_text(TENSORZERO)
    rows = write("rows.jsonl", INFERENCE, {"id": 1})
    command = ("import", "tensorzero", "tensorzero.toml", "--rows", rows, "--json")
    told = doorstep(*command).json
    assert [told[name] for name in ("read", "added", "known", "joined")] == [2, 1, 0, 0]
    assert told["refused"] == [{"line": "rows.jsonl:2", "why": "columns: no row of an inference or of feedback"}]
    assert "tensorzero::function_name::f" in told["toml"]
    assert doorstep(*command).json["known"] == 1
    assert doorstep("import", "tensorzero").code == 2


def test_langfuse_is_taken_over_into_a_workflow(doorstep):
    told = doorstep("import", "langfuse", write("traces.jsonl", TRACE), "--workflow", "desk", "--json").json
    assert told["added"] == 1
    with Store.open(".doorstep/doorstep.db") as store:
        assert [run.workflow for run in store.select(Run)] == ["desk"]
    assert "0 new, 1 known" in doorstep("import", "langfuse", "traces.jsonl").err


def test_examples_of_openai_become_records_for_init(doorstep):
    rows = [CHAT | {"messages": [*CHAT["messages"][:2], {"role": "assistant", "content": f"ho {i}"}]} for i in range(3)]
    told = doorstep("import", "openai", write("ft.jsonl", *rows, {}), "--out", "records.jsonl", "--json").json
    assert (told["read"], told["added"], len(told["refused"]), told["instructions"]) == (4, 3, 1, "Desk.")
    assert doorstep("init", "desk", "--from", "records.jsonl", "--json").json["records"] == 3
    assert "put it into SYSTEM" in doorstep("import", "openai", "ft.jsonl", "--out", "records.jsonl").err


@pytest.fixture
def filled(doorstep):
    doorstep("import", "tensorzero", "--rows", write("rows.jsonl", INFERENCE))


def test_an_export_is_redacted_and_says_so(doorstep, filled):
    told = doorstep("export", "calls", "--out", "calls.jsonl", "--workflow", "desk", "--json").json
    assert told == {"out": "calls.jsonl", "written": 1, "redacted": {"email": 1}}
    (call,) = map(json.loads, Path("calls.jsonl").read_text().splitlines())
    assert call["request"]["messages"][0]["content"] == "from [email]"
    ended = doorstep("export", "runs", "--out", "runs.jsonl")
    assert "runs.jsonl: 1 runs. Replaced: 1 email." in ended.err


def test_an_export_that_is_not_redacted_is_in_the_log(doorstep, filled):
    ended = doorstep("export", "calls", "--out", "calls.jsonl", "--no-redact")
    assert "Nothing was redacted" in ended.err
    assert "jane@example.com" in Path("calls.jsonl").read_text()
    with Store.open(".doorstep/doorstep.db") as store:
        (entry,) = store.select(Audit)
    assert (entry.action, entry.detail["redacted"]) == ("export.calls", False)


def test_an_export_is_whole_or_not_there(doorstep, filled, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    Path("calls.jsonl").write_text("before")
    monkeypatch.setattr(Store, "blob", stop)
    assert doorstep("export", "calls", "--out", "calls.jsonl").code == 130
    assert sorted(path.name for path in Path().glob("calls*")) == ["calls.jsonl"]
    assert Path("calls.jsonl").read_text() == "before"


def test_only_what_began_since_a_day_is_exported(doorstep, filled):
    assert doorstep("export", "runs", "--out", "x.jsonl", "--since", "2999-01-01", "--json").json["written"] == 0
    assert doorstep("export", "runs", "--out", "x.jsonl", "--since", "soon").code == 2
    assert doorstep("export", "runs", "--out", "none/x.jsonl").code == 2
