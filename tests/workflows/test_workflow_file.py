"""A workflow's file: its defaults, its own functions, its version."""

from pathlib import Path

import pytest

from doorstep.errors import NotFound, UsageError
from doorstep.workflows.workflow import Workflow, find, load_workflow


def make(folder: Path, source: str = "", **others: str) -> Workflow:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workflow.py").write_text(source, "utf-8")
    for name, text in others.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    return load_workflow(folder)


def test_an_empty_file_has_all_the_defaults(tmp_path):
    workflow = make(tmp_path / "orders")
    assert workflow.name == "orders"
    assert workflow.messages({"text": "hi", "qty": [3]}) == [{"role": "user", "content": "text: hi\nqty: [3]"}]
    assert workflow.parse(' {"a": 1} ') == {"a": 1}
    assert workflow.answer({"ä": 1}, None) == '{"ä":1}'
    assert workflow.rows([{"a": 1}, {"a": 2}]) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("text", ["", "  \n", "{oops", "[1,"])
def test_an_answer_that_cannot_be_read_is_a_value_error(tmp_path, text):
    with pytest.raises(ValueError, match=r"empty|JSON|Expecting"):
        make(tmp_path / "orders").parse(text)


def test_its_own_functions_and_texts_are_used(tmp_path):
    source = (
        "SYSTEM = 'Be brief'\nMAX_TOKENS = 9\ndef render(item): return item.upper()\ndef answer(expected): return 'A'"
    )
    workflow = make(tmp_path / "orders", source)
    assert workflow.messages("x") == [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "X"}]
    assert (workflow.max_tokens, workflow.answer("e", "item")) == (9, "A")


def test_a_change_of_any_of_its_python_is_another_version(tmp_path):
    source = "from rules import limit"
    first = make(tmp_path / "orders", source, rules="limit = 3").version
    assert make(tmp_path / "orders", source, rules="limit = 3").version == first
    assert make(tmp_path / "orders", source, rules="limit = 4").version != first


def test_two_workflows_may_have_a_helper_of_the_same_name(tmp_path):
    source = "from rules import limit\nSYSTEM = limit"
    assert make(tmp_path / "a", source, rules="limit = 'first'").system == "first"
    assert make(tmp_path / "b", source, rules="limit = 'second'").system == "second"


def test_classes_of_the_file_can_be_looked_up_by_their_module(tmp_path):
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclass\nclass Line:\n    qty: int\n    kind: ClassVar[str] = 'line'\n"
        "def parse(text): return Line(int(text)).qty"
    )
    assert make(tmp_path / "orders", source).parse("3") == 3


def test_a_file_that_does_not_run_is_named_with_its_error(tmp_path):
    with pytest.raises(UsageError, match=r"workflow\.py: ZeroDivisionError"):
        make(tmp_path / "orders", "1 / 0")


def test_it_is_found_by_name_or_the_way_to_make_one_is_said(tmp_path):
    make(tmp_path / "workflows" / "orders")
    assert find("orders", tmp_path).name == "orders"
    with pytest.raises(NotFound, match="doorstep init invoices --from"):
        find("invoices", tmp_path)
