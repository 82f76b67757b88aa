"""Rows of a call: what was sent and what came back, in every dialect, with what is lacking said."""

import json

import pytest
from captures import capture

from doorstep import ids
from doorstep.config import PriceSettings
from doorstep.gateway.capture import Attempt
from doorstep.gateway.dialects.table import DIALECTS
from doorstep.gateway.records import rows_of
from doorstep.value.prices import Pricer

HOSTED = {"provider": "openai", "served_model": "gpt-5-mini", "trace": None}


def rows(**changes):
    return rows_of(capture(**changes), Pricer(PriceSettings()).price)


def answer(message, **usage) -> bytes:
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return json.dumps(body | ({"usage": usage} if usage else {})).encode()


def test_our_own_call_has_its_tokens_and_what_its_cpu_time_cost():
    made = rows()
    assert (made.call.input_tokens, made.call.output_tokens) == (2, 1)
    assert (made.call.cost_microusd, made.call.cost_basis, made.call.gaps) == (50_000, "estimated", [])
    assert [span.seq for span in made.spans] == [0, 1]


def test_a_hosted_call_has_its_usage_and_its_price():
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    details = {"prompt_tokens_details": {"cached_tokens": 400}, "completion_tokens_details": {"reasoning_tokens": 60}}
    call = rows(**HOSTED, response=answer({"role": "assistant", "content": "ho"}, **usage, **details)).call
    assert (call.input_tokens, call.cached_tokens, call.output_tokens, call.reasoning_tokens) == (1000, 400, 100, 60)
    assert (call.cost_microusd, call.cost_basis) == (600 * 0.25 + 400 * 0.025 + 100 * 2, "priced")
    assert call.gaps == ["no_token_ids"]


def test_who_made_it_and_where_it_went_is_kept():
    changes = {
        "key_id": "key_1", "customer": "acme", "upstream_dialect": "anthropic.messages", "upstream_id": "msg_1",
        "retry_of": "call_0", "cached": True,
    }  # fmt: skip
    call = rows(**HOSTED, **changes).call
    assert {name: getattr(call, name) for name in changes} == changes
    assert (call.cost_microusd, call.cost_basis) == (0, "free")


def test_tries_are_rows():
    tries = [
        Attempt(provider="a", model="m", started_us=1, ended_us=2, status=429, error="slow down\0"),
        Attempt(provider="b", model="n", started_us=2, ended_us=3, status=200, key="B_KEY"),
    ]
    first, second = rows(attempts=tries).attempts
    assert (first.attempt_id, first.status_code, first.error) == ("call_0000/1", 429, "slow down\ufffd")
    assert (second.attempt_id, second.provider, second.key) == ("call_0000/2", "b", "B_KEY")


def test_a_tool_call_is_kept_as_a_message():
    tool_call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    made = rows(response=answer({"role": "assistant", "content": None, "tool_calls": [tool_call]}))
    asked, said = made.nodes
    assert (asked.role, said.role, said.parent_id) == ("user", "assistant", asked.node_id)
    assert json.loads(made.blobs[said.content_digest])["tool_calls"] == [tool_call]


def test_a_tool_call_that_is_sent_back_is_the_message_that_was_sampled():
    message = {"role": "assistant", "content": "ho"}
    first = rows(response=answer(message))
    asked = [{"role": "user", "content": "hi"}, message, {"role": "user", "content": "more"}]
    second = rows(request=json.dumps({"model": "tiny", "messages": asked}).encode())
    assert [node.node_id for node in first.nodes] == [node.node_id for node in second.nodes[:2]]


def test_a_stream_that_broke_off_says_so():
    piece = b'data: {"choices":[{"index":0,"delta":{"content":"ho"}}]}\n\n'
    call = rows(**HOSTED, stream=True, response=piece).call
    assert call.gaps == ["no_token_ids", "no_usage", "stream_incomplete", "no_price"]


@pytest.mark.parametrize(
    ("changes", "gap"),
    [({"request": b"[]"}, "request_not_understood"), ({"response": b"\xff\xfe"}, "no_usage")],
)
def test_what_is_not_understood_is_kept_as_it_is(changes, gap):
    made = rows(**HOSTED | changes)
    assert gap in made.call.gaps
    assert all(made.blobs[ids.digest(body)] == body for body in changes.values())


def test_a_dropped_call_has_no_bodies():
    made = rows(request=b"", response=b"", trace=None, gaps=["dropped_call"])
    assert (made.call.request_digest, made.blobs, made.nodes) == (None, {}, [])
    assert made.call.gaps[0] == "dropped_call"


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_makes_a_row_of_whatever_came(name):
    made = rows(dialect=name, request=b'{"model":"m"}', response=b"no such answer", **HOSTED)
    assert (made.call.dialect, made.call.request_digest) == (name, ids.digest(b'{"model":"m"}'))


def test_an_error_costs_nothing():
    call = rows(**HOSTED, status=429, response=b'{"error":{"message":"slow down"}}', error="slow down").call
    assert (call.status_code, call.error, call.cost_microusd, call.cost_basis) == (429, "slow down", 0, "free")
