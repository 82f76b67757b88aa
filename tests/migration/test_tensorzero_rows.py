"""TensorZero's rows become runs, calls and feedback, each once, whatever order they come in."""

import json

import pytest

from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.migration import history, tensorzero_rows
from doorstep.gateway.migration.files import read_files
from doorstep.store import Store
from doorstep.store.views import grades_of
from doorstep.types import Call, Feedback, Grade, Node, Run

T0_MS = 1_760_000_000_000


def uuid(number: int) -> str:
    """A UUID of version 7, as TensorZero makes them."""
    digits = f"{T0_MS + number:012x}7000800000000000{number:04x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


EPISODE, CHAT, SECOND, JSON = uuid(1), uuid(2), uuid(3), uuid(4)
ASKED = {
    "system": "You are the desk.",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "3 crates"}]}],
}


def chat(**changes):
    row = {
        "id": CHAT,
        "function_name": "desk",
        "variant_name": "mini",
        "episode_id": EPISODE,
        "input": json.dumps(ASKED),
        "output": json.dumps([{"type": "text", "text": "Noted."}]),
        "inference_params": json.dumps({"chat_completion": {"temperature": 0.5, "stop_sequences": ["END"]}}),
        "processing_time_ms": 250,
        "ttft_ms": 100,
        "tags": {"user_id": "acme"},
    }
    return row | changes


def tokens(inference=CHAT, **changes):
    row = {
        "id": uuid(50),
        "inference_id": inference,
        "model_name": "gpt-5-mini",
        "model_provider_name": "openai",
        "input_tokens": 30,
        "output_tokens": 5,
        "finish_reason": "stop",
    }
    return row | changes


def metric(target, value, number=60, name="accepted"):
    return {"id": uuid(number), "target_id": target, "metric_name": name, "value": value}


def bring(store, *files):
    return history.write(store, tensorzero_rows.entries(lambda: read_files(files, lambda *_: None), store))


def test_an_inference_is_a_call_with_its_tokens_and_its_episode_a_run(store, jsonl):
    report = bring(store, jsonl(tokens(), chat()))
    assert (report.read, report.added, report.joined, report.refused) == (2, 1, 1, [])
    (call,), (run,) = store.select(Call), store.select(Run)
    assert (call.served_model, call.provider, call.input_tokens, call.output_tokens) == ("gpt-5-mini", "openai", 30, 5)
    assert call.started_us == (T0_MS + 2) * 1000
    assert (call.first_us, call.ended_us) == (call.started_us + 100_000, call.started_us + 250_000)
    assert (call.sampling, call.upstream_id) == ({"temperature": 0.5, "stop": ["END"]}, CHAT)
    assert (call.run_id, run.workflow, run.variant, run.task_id) == (run.run_id, "desk", "mini", EPISODE)
    assert (run.output, run.customer, call.customer) == ("Noted.", "acme", "acme")
    assert {"imported", "no_token_ids"} <= {*call.gaps} & {*run.gaps}


def test_its_bodies_read_like_those_of_any_call(store, jsonl):
    bring(store, jsonl(chat()))
    (call,) = store.select(Call)
    asked = openai_chat.read(store.blob(call.request_digest))
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert openai_chat.understand(store.blob(call.response_digest)).texts == ["Noted."]
    assert {(node.role, node.sampled) for node in store.select(Node)} == {
        ("system", False),
        ("user", False),
        ("assistant", True),
    }


def test_postgres_rows_have_values_where_clickhouse_has_text(store, jsonl):
    row = chat(input=ASKED, output=[{"type": "text", "text": "Noted."}], created_at="2025-10-09 08:53:20+00")
    bring(store, jsonl(row))
    (call,) = store.select(Call)
    assert openai_chat.understand(store.blob(call.response_digest)).texts == ["Noted."]


def test_tools_their_calls_and_results_are_kept(store, jsonl):
    tool = {"name": "stock", "description": "How many", "parameters": {"type": "object"}, "strict": False}
    used = {"type": "tool_call", "id": "t1", "name": "stock", "arguments": '{"of": "crates"}'}
    result = {"type": "tool_result", "id": "t1", "name": "stock", "result": "7"}
    messages = [*ASKED["messages"], {"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    row = chat(
        input=json.dumps({"messages": messages}),
        output=json.dumps([{"type": "thought", "text": "hm"}, used]),
        dynamic_tools=[json.dumps(tool)],
    )
    bring(store, jsonl(row))
    (call,) = store.select(Call)
    asked = openai_chat.read(store.blob(call.request_digest))
    assert [message.role for message in asked.messages] == ["user", "assistant", "tool"]
    assert [tool.name for tool in asked.tools] == ["stock"]
    assert call.finish_reason == "tool_calls"
    (message,) = openai_chat.understand(store.blob(call.response_digest)).messages
    assert message["tool_calls"][0]["function"] == {"name": "stock", "arguments": '{"of": "crates"}'}


def test_a_json_function_keeps_its_schema_and_what_was_parsed(store, jsonl):
    schema = {"type": "object", "properties": {"qty": {"type": "integer"}}}
    row = chat(output=json.dumps({"raw": '{"qty": 3}', "parsed": {"qty": 3}}), output_schema=json.dumps(schema))
    bring(store, jsonl(row))
    (call,), (run,) = store.select(Call), store.select(Run)
    assert run.output == {"qty": 3}
    assert call.sampling["response_format"]["json_schema"]["schema"] == schema


def test_inferences_of_an_episode_are_calls_of_one_run(store, jsonl):
    second = chat(id=SECOND, variant_name="nano", output=json.dumps([{"type": "text", "text": "Sent."}]))
    bring(store, jsonl(second, chat()))
    (run,) = store.select(Run)
    assert {call.run_id for call in store.select(Call)} == {run.run_id}
    assert (run.variant, run.output, "several_variants" in run.gaps) == ("mini", "Sent.", True)
    assert (run.started_us, run.ended_us) == ((T0_MS + 2) * 1000, (T0_MS + 3) * 1000 + 250_000)


def test_the_model_calls_of_one_inference_add_up(store, jsonl):
    bring(store, jsonl(chat(), tokens(), tokens(model_name="judge", input_tokens=70, output_tokens=1)))
    (call,) = store.select(Call)
    assert (call.input_tokens, call.output_tokens, call.served_model) == (100, 6, "judge")


def test_newer_model_calls_have_their_cost_and_what_was_cached(store, jsonl):
    """They have the function's name and the output too, and are no inference all the same."""
    more = {"cost": "0.000123400", "provider_cache_read_input_tokens": 20, "function_name": "desk", "output": "[]"}
    report = bring(store, jsonl(chat(), tokens(**more)))
    (call,) = store.select(Call)
    assert (call.cost_microusd, call.cost_basis, call.cached_tokens, report.joined) == (123, "imported", 20, 1)


@pytest.mark.parametrize(("value", "kind"), [(True, "boolean"), (0.5, "float")])
def test_a_metric_of_an_episode_grades_its_run(store, jsonl, value, kind):
    bring(store, jsonl(metric(EPISODE, value), chat(), chat(id=SECOND)))
    (row,), (run,) = store.select(Feedback), store.select(Run)
    assert (row.kind, row.name, row.value, row.run_id) == (kind, "accepted", value, run.run_id)
    assert [grade.value for grade in grades_of(store, run.run_id)] == [float(value)]


def test_a_metric_of_an_inference_grades_the_run_only_where_it_is_the_only_one(store, jsonl):
    other = [chat(id=uuid(6), episode_id=uuid(5)), chat(id=uuid(7), episode_id=uuid(5))]
    bring(store, jsonl(chat(), *other, metric(CHAT, True, 61), metric(uuid(6), True, 62)))
    assert {row.call_id is not None for row in store.select(Feedback)} == {True}
    assert len(store.select(Grade)) == 1


def test_comments_and_demonstrations_are_feedback(store, jsonl):
    comment = {"id": uuid(70), "target_id": CHAT, "target_type": "inference", "value": "too short"}
    shown = {"id": uuid(71), "inference_id": CHAT, "value": json.dumps([{"type": "text", "text": "Noted, 3 crates."}])}
    edited = {"id": uuid(72), "inference_id": CHAT, "value": json.dumps({"raw": '{"qty": 3}', "parsed": {"qty": 3}})}
    bring(store, jsonl(chat(), comment, shown, edited))
    said = {(row.kind, json.dumps(row.value)) for row in store.select(Feedback)}
    assert said == {
        ("comment", '"too short"'),
        ("demonstration", '"Noted, 3 crates."'),
        ("demonstration", '{"qty": 3}'),
    }


def test_importing_twice_adds_nothing(store, jsonl):
    file = jsonl(chat(), tokens(), metric(EPISODE, True))
    bring(store, file)
    before = [store.select(kind) for kind in (Run, Call, Node, Feedback, Grade)]
    report = bring(store, file)
    assert (report.read, report.added, report.known, report.joined) == (3, 0, 2, 1)
    assert [store.select(kind) for kind in (Run, Call, Node, Feedback, Grade)] == before


def test_every_database_takes_them(where, jsonl):
    strange = "NUL \0 and \U0001f600"
    comment = {"id": uuid(70), "target_id": CHAT, "target_type": "inference", "value": strange}
    row = chat(variant_name=strange, output=[{"type": "text", "text": strange}], tags={"customer": strange})
    with Store.open(where) as store:
        assert bring(store, jsonl(row, tokens(model_name=strange), comment)).added == 2
        assert bring(store, jsonl(row, comment)).known == 2
        (run,), (feedback,) = store.select(Run), store.select(Feedback)
    assert (run.output, feedback.value, run.variant) == (strange, strange, strange.replace("\0", "\ufffd"))


def test_feedback_may_come_in_a_later_import(store, jsonl):
    bring(store, jsonl(chat()))
    report = bring(store, jsonl(metric(CHAT, True), metric(EPISODE, False, 61, "late"), name="later.jsonl"))
    assert (report.added, len(store.select(Grade))) == (2, 2)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"a": 1}', "columns: no row"),
        (chat(id="7"), "id: '7' is no UUID"),
        (chat(function_name=""), "function_name: it is missing"),
        (chat(input="hello"), "input: it is no object"),
        (chat(input=json.dumps({"messages": [1]})), "input: a message has no role"),
        (chat(id="550e8400-e29b-41d4-a716-446655440000"), "timestamp: None is no time"),
        (tokens(uuid(99)), "inference_id: its inference is not among the rows"),
        (tokens(cost="dear"), "cost: 'dear' is no amount"),
        (tokens(input_tokens=-1), "input_tokens: -1 is no count"),
        ({"id": CHAT, "function_name": "desk"}, "output: it is missing; Postgres has it in a table of its own"),
        (chat(dataset_name="golden"), "columns: no row"),
        (metric(uuid(99), True), "target_id: there is no inference or episode"),
        (metric(SECOND, "yes"), "value: a metric is true, false or a number"),
    ],
)
def test_a_bad_line_is_refused_and_the_others_go_on(store, jsonl, row, why):
    report = bring(store, jsonl(row, chat(id=SECOND)))
    ((line, said),) = [(refused.line, refused.why) for refused in report.refused]
    assert (line, report.read, report.added) == ("rows.jsonl:1", 2, 1)
    assert said.startswith(why)
    assert len(store.select(Run)) == 1


def test_a_batch_is_not_the_end(store, jsonl, monkeypatch):
    monkeypatch.setattr(history, "BATCH", 2)
    rows = [chat(id=uuid(100 + number), episode_id=uuid(200 + number)) for number in range(7)]
    assert bring(store, jsonl(*rows, rows[0])).added == 7
    assert (len(store.select(Call)), len(store.select(Run))) == (7, 7)
