"""The page of what other clients can do says what was found by running them."""

import importlib.util
import json
from types import ModuleType

import pytest
from pages import ROOT


@pytest.fixture
def run(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "compat")
    spec = importlib.util.spec_from_file_location("compat_run", ROOT / "compat" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_last_run(run):
    page = run.PAGE.read_text("utf-8")
    assert run.page(page, json.loads(run.RESULTS.read_text("utf-8"))) == page


def test_every_client_has_been_run(run):
    found = json.loads(run.RESULTS.read_text("utf-8"))
    assert sorted(found) == sorted(run.name_of(script) for script in run.all_scripts())
    assert all(one["checks"] and one["versions"] for one in found.values())


def test_what_fails_is_in_the_table_and_counts_against_what_passed(run):
    passed = {"ok": True, "detail": ""}
    failed = {"ok": False, "detail": "no tool came"}
    before = {"client": "One", "versions": {"one": "1.0"}, "checks": {"chat / itself / tools": passed}}
    now = before | {"checks": {"chat / itself / tools": failed, "chat / chat / tools": passed}}
    assert "1 of 2" in run.table({"one": now})
    assert "- One, chat / itself / tools: `no tool came`" in run.table({"one": now})
    assert run.is_worse(before, now)
    assert not run.is_worse(now, now)
