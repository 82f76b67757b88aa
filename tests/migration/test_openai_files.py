"""OpenAI's examples become records, of which a taskset can be made."""

import json

import pytest

from doorstep.gateway.migration import openai_files
from doorstep.gateway.migration.files import read_files
from doorstep.workflows.taskset import read_records

SYSTEM = {"role": "system", "content": "You are the desk."}
USER = {"role": "user", "content": "3 crates"}


def says(content, **fields):
    return {"role": "assistant", "content": content} | fields


def chat(*messages, **fields):
    return {"messages": [SYSTEM, USER, *messages]} | fields


def completion(**changes):
    row = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "choices": [{"index": 0, "message": says("Noted."), "finish_reason": "stop"}],
        "messages": {"object": "list", "data": [SYSTEM, USER]},
        "input_user": "acme",
    }
    return row | changes


@pytest.fixture
def read(jsonl):
    return lambda *rows: openai_files.records(read_files([jsonl(*rows)], lambda *_: None))


def test_a_fine_tuning_chat_is_a_record_and_its_system_prompt_an_instruction(read):
    found = read(chat(says("Noted.")))
    assert found.records == [{"id": "1", "input": "3 crates", "expected": "Noted."}]
    assert (found.instructions, found.refused) == ("You are the desk.", [])


def test_an_answer_that_is_an_object_is_graded_field_by_field(read):
    assert read(chat(says('{"qty": 3}'))).records[0]["expected"] == {"qty": 3}


def test_a_conversation_stays_one(read):
    found = read(chat(says("Which?"), {"role": "user", "content": [{"type": "text", "text": "Red."}]}, says("Noted.")))
    turns = found.records[0]["input"]["messages"]
    assert [turn["content"] for turn in turns] == ["3 crates", "Which?", "Red."]


def test_system_prompts_that_differ_are_a_part_of_the_input(read):
    found = read(chat(says("Noted.")), {"messages": [USER, says("Hm.")]})
    assert found.instructions is None
    assert [record["input"]["system"] for record in found.records] == ["You are the desk.", ""]


def test_a_stored_completion_keeps_its_id_time_and_user(read):
    (record,) = read(completion()).records
    assert record == {
        "id": "chatcmpl-1",
        "input": "3 crates",
        "expected": "Noted.",
        "at": "2025-10-09T08:53:20+00:00",
        "customer": "acme",
    }


def test_a_stored_response_is_read(read):
    output = [
        {"type": "reasoning"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Noted."}]},
    ]
    row = {"id": "resp_1", "object": "response", "created_at": 1_760_000_000, "input": "3 crates", "output": output}
    found = read(row | {"instructions": "You are the desk."})
    assert (found.records[0]["input"], found.records[0]["expected"]) == ("3 crates", "Noted.")
    assert found.instructions == "You are the desk."


def test_of_a_preference_the_better_answer_is_expected(read):
    row = {
        "input": {"messages": [USER]},
        "preferred_output": [says("Noted.")],
        "non_preferred_output": [says("What?")],
    }
    assert read(row).records[0]["expected"] == "Noted."


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "line: not JSON"),
        ({}, "messages: there are none"),
        ({"messages": [USER]}, "messages: the last one is not the assistant's"),
        ({"messages": [SYSTEM, says("Hello")]}, "messages: nothing was asked"),
        ({"messages": [7, says("Hello")]}, "messages: a message is missing"),
        (chat(says("")), "content: the answer is empty"),
        (chat(says(None, refusal="no")), "content: the answer is empty (a refusal)"),
        (chat(says("Noted.", weight=0)), "weight: the answer has the weight 0"),
        (chat(says(None, tool_calls=[{}])), "tool_calls: the answer is the call of a tool"),
        (chat({"role": "tool", "content": "7"}, says("Noted.")), "messages: tools were used"),
        (chat({"role": "user", "content": [{"type": "image_url"}]}, says("Noted.")), "content: a message is more"),
        (completion(messages=None), "messages: there are none; those of a stored completion are at"),
        (completion(choices=[]), "messages: a message is missing"),
        (
            completion(choices=[{"message": says("N"), "finish_reason": "length"}]),
            "finish_reason: the answer was cut off",
        ),
    ],
)
def test_what_cannot_be_a_record_is_refused_and_the_others_go_on(read, row, why):
    found = read(row, chat(says("Noted.")))
    (refused,) = found.refused
    assert refused.why.startswith(why)
    assert (refused.line, [record["id"] for record in found.records]) == ("rows.jsonl:1", ["2"])


def test_a_taskset_takes_the_records(read, tmp_path):
    file = tmp_path / "records.jsonl"
    records = read(completion(), chat(says('{"qty": 3}'))).records
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    tasks, problems = read_records(file)
    assert ([task.task_id for task in tasks], problems) == (["chatcmpl-1", "2"], [])
