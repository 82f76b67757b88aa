"""What ``doorstep run`` reads: every input is a row, whatever is wrong with another one."""

import json
from pathlib import Path

import pytest

from doorstep.cli.working import read_inputs
from doorstep.workflows.workflow import load_workflow


@pytest.fixture
def workflow(tmp_path):
    folder = tmp_path / "crates"
    folder.mkdir()
    (folder / "workflow.py").write_text("")
    return load_workflow(folder)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_bad_line_is_a_row_of_its_own_and_the_rest_goes_on(workflow, tmp_path):
    lines = [b'{"id": "a", "input": "one"}', b"{oops", b"", b'"half \\ud800"', b"\xff\xfe", b'{"other": 1}', b'"last"']
    tasks, failures = read_inputs(workflow, [write(tmp_path / "new.jsonl", b"\n".join(lines))])
    assert [(task.task_id, task.item) for task in tasks] == [("a", "one"), ("6", {"other": 1}), ("7", "last")]
    assert [failure.task_id for failure in failures] == ["2", "4", "5"]
    assert all("not JSON" in str(failure.error) for failure in failures)


def test_inputs_of_one_name_have_the_path_below_their_common_folder(workflow, tmp_path):
    paths = [write(tmp_path / name, name.encode()) for name in ("may/a.txt", "june/a.txt", "june/a.md", "june/b.txt")]
    tasks, _ = read_inputs(workflow, paths)
    assert [task.task_id for task in tasks] == ["may/a.txt", "june/a.txt", "june/a.md", "b"]


def test_lines_of_one_name_have_their_files_and_numbers(workflow, tmp_path):
    record = json.dumps({"id": "a", "input": "x"}).encode()
    paths = [write(tmp_path / name, record + b"\n" + record) for name in ("one.jsonl", "two.jsonl")]
    tasks, _ = read_inputs(workflow, paths)
    assert [task.task_id for task in tasks] == ["one.jsonl:1", "one.jsonl:2", "two.jsonl:1", "two.jsonl:2"]


def test_an_unusable_input_has_a_name_of_its_own_too(workflow, tmp_path):
    paths = [write(tmp_path / "may/a.txt", b"\0"), write(tmp_path / "june/a.txt", b"x"), tmp_path / "none.jsonl"]
    tasks, failures = read_inputs(workflow, paths)
    assert [task.task_id for task in tasks] == ["june/a.txt"]
    assert [failure.task_id for failure in failures] == ["may/a.txt", "none"]
    assert "No such file" in str(failures[1].error)


@pytest.mark.parametrize("value", ["'half \\ud800'", "{'n': 2**70, 'path': path}", "[object()]"])
def test_what_a_workflow_loads_and_no_json_can_hold_is_said(workflow, tmp_path, value):
    (workflow.folder / "workflow.py").write_text(f"def load(path):\n    return {value}\n")
    tasks, failures = read_inputs(load_workflow(workflow.folder), [write(tmp_path / "a.txt", b"x")])
    assert (tasks, failures[0].task_id) == ([], "a")
    assert "cannot be written as JSON" in str(failures[0].error)


def test_a_file_whose_name_is_no_text_is_a_row(doorstep, workflow, tmp_path):
    (tmp_path / "doorstep.toml").write_text('[serve]\nmodel = ""\n[providers.fake]\nbase_url = "fake:"\n')
    for name in (b"in/good\xff.txt", b"in/bad\xfe.txt"):
        path = tmp_path / name.decode("utf-8", "surrogateescape")
        write(path, b"send 7 crates" if b"good" in name else b"")
    ended = doorstep("run", "crates", "in", "--variant", "fake/echo", "--out", "out.csv", "--json")
    assert (ended.code, ended.json["n"], ended.json["failed"]) == (0, 2, 1)
    assert len(Path("out.csv").read_text("utf-8").splitlines()) == 3
