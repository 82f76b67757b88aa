"""``doorstep init``: a folder that runs as it is, from the user's own records."""

import json
from pathlib import Path

import pytest

from doorstep.workflows.workflow import find


def test_init_makes_a_workflow_that_loads(doorstep, records):
    ended = doorstep("init", "crates", "--from", str(records), "--json")
    assert ended.json == {"workflow": "crates", "folder": "workflows/crates", "records": 160, "problems": []}
    assert find("crates").messages("12 crates")[-1] == {"role": "user", "content": "12 crates"}


def test_a_record_that_cannot_be_used_is_named_and_the_rest_goes_on(doorstep, records):
    with records.open("a", encoding="utf-8") as file:
        file.write('{"input": "no booking"}\n')
    assert "some.jsonl:161" in doorstep("init", "crates", "--from", str(records), "--json").json["problems"][0]


@pytest.mark.parametrize("name", ["../up", "a b", "", "x/y"])
def test_a_bad_name_makes_nothing(doorstep, records, name):
    ended = doorstep("init", name, "--from", str(records))
    assert ended.code == 2
    assert "letters, digits" in ended.err
    assert not Path("workflows").exists()


def test_an_existing_workflow_is_never_overwritten(doorstep, records):
    doorstep("init", "crates", "--from", str(records))
    assert "exists" in doorstep("init", "crates", "--from", str(records)).err


def test_a_file_without_a_usable_record_says_what_a_record_is(doorstep, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(["no", "object"]), "utf-8")
    ended = doorstep("init", "crates", "--from", str(bad))
    assert ended.code == 2
    assert "'input' and 'expected'" in ended.err


def test_either_records_or_an_example_is_needed(doorstep):
    assert "--from RECORDS.jsonl or --example NAME" in doorstep("init", "crates").err


def test_an_unknown_example_is_a_clear_error(doorstep):
    ended = doorstep("init", "crates", "--example", "nothing")
    assert ended.code == 2
    assert "orders" in ended.err
