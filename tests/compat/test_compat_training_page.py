"""The page of training clients and recipes says what was found by running them."""

import importlib.util
import json
from types import ModuleType

import pytest
from pages import ROOT


def module(monkeypatch, folder: str) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "compat")
    monkeypatch.syspath_prepend(ROOT / "compat" / folder)
    spec = importlib.util.spec_from_file_location(f"compat_{folder}", ROOT / "compat" / folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", ["sdk", "cookbook"])
def test_the_table_is_that_of_the_last_run(monkeypatch, folder):
    run = module(monkeypatch, folder)
    text = run.marked.PAGE.read_text("utf-8")
    assert run.page(text, json.loads(run.RESULTS.read_text("utf-8"))) == text


def test_every_version_and_every_recipe_has_been_run(monkeypatch):
    sdk, cookbook = module(monkeypatch, "sdk"), module(monkeypatch, "cookbook")
    assert tuple(json.loads(sdk.RESULTS.read_text("utf-8"))) == sdk.VERSIONS
    found = json.loads(cookbook.RESULTS.read_text("utf-8"))
    assert [one["name"] for one in found] == [recipe.name for recipe in cookbook.RECIPES]


def test_what_fails_is_in_the_table_with_its_reason(monkeypatch):
    sdk = module(monkeypatch, "sdk")
    right = {"name": "one", "group": "losses", "ok": True, "tried": True, "error": None}
    wrong = right | {"name": "two", "ok": False, "error": "loss:sum: 1, not 2"}
    absent = right | {"name": "three", "tried": False, "error": "not in this SDK: TrainingClient.three"}
    table = sdk.table({"0.1": [right, wrong, absent], "0.2": [right, right]})
    assert "| 0.1 | 1 of 2 | 1 |" in table
    assert "| 0.2 | 2 ✓ | – |" in table
    assert "- two: `loss:sum: 1, not 2` (0.1)" in table


def test_what_does_not_learn_has_failed(monkeypatch, tmp_path):
    cookbook = module(monkeypatch, "cookbook")
    kept = tmp_path / "runs" / "falls" / "metrics.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("".join(json.dumps({"loss": 10 - step}) + "\n" for step in range(6)))
    falls = cookbook.Recipe("falls", "", ("loss", -2.0))
    assert cookbook._not_learned(falls, tmp_path) == ""
    assert (
        cookbook._not_learned(falls._replace(learns=("loss", -4.0)), tmp_path) == "loss changes by -3, and not by -4.0"
    )
