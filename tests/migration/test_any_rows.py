"""Whatever stands in a row, it is taken or refused, and the rows beside it are taken."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_langfuse import generation, score, trace
from test_tensorzero_rows import ASKED, CHAT, chat, metric, tokens

from doorstep.gateway.migration import history, langfuse, openai_files, tensorzero_rows
from doorstep.gateway.migration.files import Line
from doorstep.store import Store
from doorstep.types import Run

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["{}", "[1]", "user"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "messages", "tools_available"]), inner, max_size=2
        )
    ),
    max_leaves=4,
)
CHATTED = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Store.open(tmp_path_factory.mktemp("any") / "doorstep.db") as store:
        yield store


def places(value: Any) -> list[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(name, *rest) for name, inner in parts for rest in [(), *places(inner)]]


def spoiled(data: st.DataObject, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with anything at one of its places."""
    changed = copy.deepcopy(row)
    *way, last = data.draw(st.sampled_from(places(changed)))
    at: Any = changed
    for name in way:
        at = at[name]
    at[last] = data.draw(ANYTHING)
    return changed


@settings(max_examples=300)
@given(
    data=st.data(),
    row=st.sampled_from([chat(input=ASKED, output=[{"type": "text", "text": "x"}]), tokens(), metric(CHAT, True)]),
)
def test_any_row_of_tensorzero(store, data, row):
    lines = [Line("1", spoiled(data, row)), Line("2", chat())]
    report = history.write(store, tensorzero_rows.entries(lambda: lines, store))
    assert report.read == 2
    assert store.select(Run, workflow="desk")


@settings(max_examples=300)
@given(data=st.data(), row=st.sampled_from([trace(), generation(), score()]))
def test_any_row_of_langfuse(store, data, row):
    lines = [Line("1", spoiled(data, row)), Line("2", trace(id="t2"))]
    report = history.write(store, langfuse.entries(lambda: lines, store))
    assert report.read >= 2
    assert "2" not in {refused.line for refused in report.refused}


@settings(max_examples=300)
@given(data=st.data())
def test_any_example_of_openai(data):
    found = openai_files.records([Line("f:1", spoiled(data, CHATTED)), Line("f:2", CHATTED)])
    assert len(found.records) + len(found.refused) == 2
    assert found.records[-1]["expected"] == "ho"
