"""Langfuse's exports, in each of their forms, become runs, calls, grades and feedback."""

import csv
import json

import pytest

from doorstep.errors import BadInput, UsageError
from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.migration import history, langfuse
from doorstep.gateway.migration.files import read_files
from doorstep.types import Call, Feedback, Grade, GradeSource, Run, RunStatus

ASKED = [{"role": "system", "content": "You are the desk."}, {"role": "user", "content": "3 crates"}]


def trace(**changes):
    row = {
        "id": "t1",
        "timestamp": "2026-10-05T10:00:00.000Z",
        "name": "orders",
        "userId": "acme",
        "input": {"mail": "3 crates"},
        "output": {"qty": 3},
    }
    return row | changes


def generation(**changes):
    row = {
        "id": "o1",
        "traceId": "t1",
        "type": "GENERATION",
        "startTime": "2026-10-05T10:00:01.000Z",
        "completionStartTime": "2026-10-05T10:00:01.500Z",
        "endTime": "2026-10-05T10:00:02.000Z",
        "model": "openai/gpt-5-mini",
        "modelParameters": {"temperature": 0.5},
        "input": ASKED,
        "output": {"role": "assistant", "content": "Noted."},
        "usageDetails": {
            "input": 20,
            "input_cached_tokens": 10,
            "output": 4,
            "output_reasoning_tokens": 1,
            "total": 35,
        },
        "costDetails": {"input": 0.0001, "output": 0.0002, "total": 0.0003},
    }
    return row | changes


def score(**changes):
    row = {
        "id": "s1",
        "traceId": "t1",
        "name": "helpful",
        "value": 0.75,
        "dataType": "NUMERIC",
        "source": "EVAL",
        "timestamp": "2026-10-05T11:00:00.000Z",
    }
    return row | changes


def snake(row):
    return {"".join("_" + letter.lower() if letter.isupper() else letter for letter in name): row[name] for name in row}


def bring(store, *files, workflow=None):
    return history.write(store, langfuse.entries(lambda: read_files(files, lambda *_: None), store, workflow))


def test_a_trace_is_a_run_and_a_generation_a_call(store, jsonl):
    report = bring(store, jsonl(trace(), generation()))
    assert (report.read, report.added, report.refused) == (2, 2, [])
    (call,), (run,) = store.select(Call), store.select(Run)
    assert (call.provider, call.served_model, call.run_id) == ("openai", "openai/gpt-5-mini", run.run_id)
    assert (call.input_tokens, call.cached_tokens, call.output_tokens, call.reasoning_tokens) == (30, 10, 5, 1)
    assert (call.cost_microusd, call.cost_basis, call.sampling) == (300, "imported", {"temperature": 0.5})
    assert (call.first_us - call.started_us, call.ended_us - call.started_us) == (500_000, 1_000_000)
    assert (run.workflow, run.customer, run.output, run.status) == ("orders", "acme", {"qty": 3}, RunStatus.OK)
    assert (run.started_us, run.ended_us) == (call.started_us - 1_000_000, call.ended_us)


@pytest.mark.parametrize(
    ("given", "roles"),
    [
        (ASKED, ["system", "user"]),
        ({"messages": ASKED, "tools": []}, ["system", "user"]),
        ([{"type": "system", "content": "x"}, {"type": "human", "content": "y"}], ["system", "user"]),
        (json.dumps(ASKED), ["system", "user"]),
        ("3 crates", ["user"]),
        ({"mail": "3 crates"}, ["user"]),
        (None, ["user"]),
    ],
)
def test_an_input_in_any_form_is_messages(store, jsonl, given, roles):
    bring(store, jsonl(generation(input=given)))
    (call,) = store.select(Call)
    asked = openai_chat.read(store.blob(call.request_digest))
    assert [message.role for message in asked.messages] == roles


@pytest.mark.parametrize(
    "output",
    [
        "Noted.",
        {"role": "assistant", "content": "Noted."},
        {"content": "Noted."},
        [{"type": "ai", "content": "Noted."}],
        {"choices": [{"message": {"role": "assistant", "content": "Noted."}}]},
        json.dumps({"role": "assistant", "content": "Noted."}),
    ],
)
def test_an_output_in_any_form_is_an_answer(store, jsonl, output):
    bring(store, jsonl(generation(output=output)))
    (call,) = store.select(Call)
    assert openai_chat.understand(store.blob(call.response_digest)).texts == ["Noted."]


def test_observations_that_repeat_their_trace_need_no_row_of_it(store, jsonl):
    root = generation(id="o0", type="SPAN", parentObservationId="", traceName="orders", userId="acme", input={"n": 1})
    inner = generation(parentObservationId="o0", traceName="orders", userId="acme")
    report = bring(store, jsonl(snake(inner), snake(root)))
    (run,) = store.select(Run)
    assert (run.workflow, run.customer, report.added) == ("orders", "acme", 2)
    assert len(store.select(Call)) == 1


def test_a_downloaded_trace_has_its_parts_inside(store, tmp_path):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(trace(observations=[generation()], scores=[score()])))
    bring(store, file)
    assert (len(store.select(Run)), len(store.select(Call)), len(store.select(Grade))) == (1, 1, 1)


def test_a_page_of_the_api_is_read(store, tmp_path):
    file = tmp_path / "traces.json"
    file.write_text(json.dumps({"data": [trace(observations=["o1"]), trace(id="t2")], "meta": {"page": 1}}))
    assert bring(store, file).added == 2


def test_csv_is_read(store, tmp_path):
    file = tmp_path / "observations.csv"
    row = {name: json.dumps(cell) if isinstance(cell, dict | list) else cell for name, cell in generation().items()}
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, row)
        writer.writeheader()
        writer.writerow(row)
        out.write("o2,too few\n")
    report = bring(store, file)
    (call,) = store.select(Call)
    assert (call.input_tokens, call.sampling, len(report.refused)) == (30, {"temperature": 0.5}, 1)


@pytest.mark.parametrize(
    ("changes", "said", "grade"),
    [
        ({}, ("float", 0.75, GradeSource.JUDGE), 0.75),
        ({"value": 4, "source": "ANNOTATION"}, ("float", 4.0, GradeSource.HUMAN), None),
        ({"value": 1, "dataType": "BOOLEAN", "source": "API"}, ("boolean", True, GradeSource.OUTCOME), 1.0),
        ({"value": 0, "stringValue": "rude", "dataType": "CATEGORICAL"}, ("comment", "rude", GradeSource.JUDGE), None),
        ({"stringValue": "3 crates", "dataType": "CORRECTION"}, ("demonstration", "3 crates", GradeSource.JUDGE), None),
    ],
)
def test_a_score_is_feedback_and_from_0_to_1_a_grade(store, jsonl, changes, said, grade):
    bring(store, jsonl(score(**changes), trace()))
    (row,) = store.select(Feedback)
    assert (row.kind, row.value, row.source) == said
    assert [grade.value for grade in store.select(Grade)] == ([] if grade is None else [grade])


def test_the_comment_of_a_score_is_feedback_too(store, jsonl):
    bring(store, jsonl(trace(), score(comment="kind words")))
    assert {row.kind: row.value for row in store.select(Feedback)} == {"float": 0.75, "comment": "kind words"}


def test_the_score_of_a_generation_grades_the_run_only_where_it_is_the_only_one(store, jsonl):
    bring(store, jsonl(trace(), generation(), score(observationId="o1")))
    assert len(store.select(Grade)) == 1
    two = [generation(id=f"p{number}", traceId="t2") for number in range(2)]
    bring(store, jsonl(trace(id="t2"), *two, score(id="s2", traceId="t2", observationId="p0")))
    assert (len(store.select(Grade)), len(store.select(Feedback))) == (1, 2)


def test_importing_twice_adds_nothing(store, jsonl):
    file = jsonl(trace(), generation(), score())
    bring(store, file)
    assert (bring(store, file).added, bring(store, file).known) == (0, 3)


def test_a_failure_is_a_run_that_failed(store, jsonl):
    failed = {"level": "ERROR", "statusMessage": "rate limit", "output": None}
    bring(store, jsonl(generation(parentObservationId=None, **failed)))
    (run,), (call,) = store.select(Run), store.select(Call)
    assert (run.status, run.error, call.error) == (RunStatus.AGENT_ERROR, "rate limit", "rate limit")
    assert call.response_digest is None


def test_runs_can_belong_to_a_workflow_of_another_name(store, jsonl):
    bring(store, jsonl(trace()), workflow="desk")
    assert store.select(Run)[0].workflow == "desk"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("nothing", "not JSON"),
        ({"id": "x"}, "columns: no trace"),
        (trace(timestamp="soon"), "timestamp: 'soon' is no time"),
        (generation(traceId=None), "traceId: it is missing"),
        (generation(startTime="soon"), "startTime: 'soon' is no time"),
        (generation(type="SPAN", startTime="soon"), "startTime: 'soon' is no time"),
        (score(traceId="t9"), "traceId: there is no trace t9"),
        (score(traceId=None, sessionId="x"), "traceId: it is about a session"),
        (score(value="high"), "value: 'high' is no value"),
        (score(value=7, dataType="BOOLEAN"), "value: 7 is no value"),
    ],
)
def test_a_bad_line_is_refused_and_the_others_go_on(store, jsonl, row, why):
    report = bring(store, jsonl(row, trace(), generation(id="o2")))
    (refused,) = report.refused
    assert refused.why.startswith(why)
    assert (refused.line, report.added, len(store.select(Run))) == ("rows.jsonl:1", 2, 1)


def test_a_file_that_cannot_be_read_is_told(store, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        bring(store, tmp_path / "none.jsonl")
    parquet = tmp_path / "x.parquet"
    parquet.touch()
    with pytest.raises(UsageError, match="export as"):
        bring(store, parquet)
    broken = tmp_path / "x.json"
    broken.write_text("{}\n{}")
    with pytest.raises(BadInput, match="not JSON"):
        bring(store, broken)
