"""The shipped examples are what they say: reproducible files, consistent records, rules that hold."""

import runpy
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from doorstep.grading.graders import CodeGrader
from doorstep.types import Split
from doorstep.workflows.taskset import read_records, seal
from doorstep.workflows.workflow import Workflow, load_workflow

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("orders", "questions", "tickets")


@pytest.fixture(params=NAMES)
def workflow(request: pytest.FixtureRequest) -> Workflow:
    return load_workflow(EXAMPLES / request.param)


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_what_the_script_makes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shutil.copytree(EXAMPLES / name, tmp_path / name)
    monkeypatch.syspath_prepend(str(made))
    sys.modules.pop("workflow", None)
    runpy.run_path(str(made / "make.py"), run_name="__main__")
    sys.modules.pop("workflow", None)
    files = [path.relative_to(EXAMPLES / name) for path in (EXAMPLES / name).rglob("*") if path.is_file()]
    kept = [file for file in files if "__pycache__" not in file.parts]
    assert [file for file in kept if (made / file).read_bytes() != (EXAMPLES / name / file).read_bytes()] == []


def test_every_record_is_usable(workflow: Workflow) -> None:
    _, problems = read_records(workflow.records)
    assert problems == []


def test_the_booked_result_is_a_perfect_answer(workflow: Workflow) -> None:
    grader = CodeGrader(workflow.grade)
    tasks, _ = read_records(workflow.records)
    for task in tasks:
        value = workflow.finish(workflow.parse(workflow.answer(task.expected, task.item)), task.item)
        assert grader.score(value, task.expected).exact == 1.0, task


def test_another_records_result_is_graded_wrong(workflow: Workflow) -> None:
    grader = CodeGrader(workflow.grade)
    tasks, _ = read_records(workflow.records)
    different = [(a, b) for a, b in pairwise(tasks) if a.expected != b.expected][:100]
    wrong = [grader.score(a.expected, b.expected).exact for a, b in different]
    assert sum(wrong) < len(wrong) * 0.2  # two questions may have the same rows as answer


def test_orders_hold_out_at_least_300_records() -> None:
    assert seal("orders", EXAMPLES / "orders" / "records.jsonl").dataset.counts[Split.HELD_OUT] >= 300


ORDER = {"from": "a@b.example", "subject": "", "at": "2026-03-05T09:00:00", "body": "hi"}


def booked(sku: str, qty: int, unit: str) -> dict[str, object]:
    value = load_workflow(EXAMPLES / "orders").finish(
        {"lines": [{"sku": sku, "qty": qty, "unit": unit}], "day": 6}, ORDER
    )
    assert value["day"] == "2026-03-06"
    line: dict[str, object] = value["lines"][0]
    return line


def test_single_pieces_are_booked_as_whole_cases() -> None:
    assert booked("cola", 30, "piece") == {"sku": "cola", "qty": 2, "unit": "case"}


def test_the_least_quantity_is_kept() -> None:
    assert booked("lettuce", 1, "case") == {"sku": "lettuce", "qty": 2, "unit": "case"}


def test_discontinued_goods_become_their_successor() -> None:
    assert booked("plastic-straws", 3, "case") == {"sku": "paper-straws", "qty": 3, "unit": "case"}


def test_unknown_goods_go_to_a_person() -> None:
    with pytest.raises(ValueError, match="not in the catalogue"):
        booked("unicorns", 1, "case")


def test_a_weekend_is_no_delivery_day() -> None:
    workflow = load_workflow(EXAMPLES / "orders")
    with pytest.raises(ValueError, match="not among the next delivery days"):
        workflow.finish({"lines": [{"sku": "cola", "qty": 1, "unit": "case"}], "day": 7}, ORDER)


def test_of_a_duplicate_in_the_catalogue_the_first_line_counts(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "orders", tmp_path / "orders")
    with (folder / "catalogue.csv").open("a", encoding="utf-8") as file:
        file.write("cola,bag,1,99,\n")
    line = load_workflow(folder).finish({"lines": [{"sku": "cola", "qty": 1, "unit": "case"}], "day": 6}, ORDER)[
        "lines"
    ][0]
    assert line == {"sku": "cola", "qty": 1, "unit": "case"}


def test_a_question_may_only_read() -> None:
    workflow = load_workflow(EXAMPLES / "questions")
    with pytest.raises(ValueError, match="no SELECT"):
        workflow.finish("delete from bikes", "how many?")


def test_an_endless_query_is_stopped() -> None:
    workflow = load_workflow(EXAMPLES / "questions")
    with pytest.raises(ValueError, match="does not run"):
        workflow.finish("select count(*) from rentals a, rentals b, rentals c", "how many?")


def test_the_inbox_is_read_in_every_encoding() -> None:
    workflow = load_workflow(EXAMPLES / "orders")
    bodies = {path.stem: workflow.load(path)["body"] for path in (EXAMPLES / "orders" / "inbox").glob("[0-9]*.eml")}
    assert len(bodies) == 24
    assert "马苏里拉 12箱" in bodies["18"]  # GB 18030
    assert "Kantine Süd" in bodies["12"]  # ISO 8859-1
    assert not any("<br>" in body for body in bodies.values())
