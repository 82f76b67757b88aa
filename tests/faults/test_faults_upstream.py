"""Upstreams that misbehave: what the client sees, and what the record has of it."""

import asyncio
import time
from contextlib import suppress

import httpx
import openai
import pytest
from bad_upstream import ANSWER, STREAM
from gateway_parts import wait_for
from served import HELLO, ask

from doorstep.types import Call

BROKEN = (openai.APIError, httpx.RemoteProtocolError, httpx.ReadError)  # an error event, or the connection's end


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:
        yield client


def read_stream(client, model):
    """Read a stream to its end; return its texts."""
    with client.chat.completions.create(model=model, messages=HELLO, stream=True) as stream:
        return [chunk.choices[0].delta.content for chunk in stream]


# Cut


@pytest.mark.parametrize("manner", ["cut", "short"])
def test_a_stream_that_is_cut_upstream_is_cut_here(client, recorded, manner):
    with pytest.raises(BROKEN):
        read_stream(client, f"bad/{manner}")
    call = recorded()
    assert (call.status_code, call.finish_reason) == (200, None)
    assert call.error


def test_what_came_before_the_cut_is_in_the_record(client, recorded, store):
    with pytest.raises(BROKEN):
        read_stream(client, "bad/cut")
    assert store.blob(recorded().response_digest) == STREAM[0]


def test_a_stream_without_its_end_mark_is_not_taken_for_a_whole_one(client, recorded):
    with pytest.raises(BROKEN):
        read_stream(client, "bad/unmarked")
    assert recorded().error


def test_a_whole_answer_that_is_cut_is_asked_for_again(address, upstream, tries):
    answer = ask(address, "bad/cut")
    assert (answer.status_code, upstream.asked["cut"]) == (502, 3)
    assert [(attempt.status_code, bool(attempt.error)) for attempt in tries()] == [(0, True)] * 3


def test_a_whole_answer_that_is_cut_can_come_from_another(address, recorded):
    assert ask(address, "cut").json()["choices"][0]["message"]["content"] == "hello"
    assert (recorded().provider, recorded().requested_model) == ("fake", "cut")


# Slow


def test_a_drip_is_passed_on_whole(address, recorded, store):
    answer = ask(address, "bad/drip", stream=True)
    assert answer.content == b"".join(STREAM)
    assert store.blob(recorded().response_digest) == answer.content
    assert recorded().finish_reason == "stop"


def test_an_upstream_that_never_begins_is_a_timeout(address, recorded):
    assert ask(address, "bad/silent", stream=True).status_code == 504
    assert recorded().status_code == 504


def test_the_slow_stream_guard_goes_to_another_before_the_first_byte(address, tries):
    answer = ask(address, "silent", stream=True)
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert [(attempt.provider, attempt.error) for attempt in tries()] == [
        ("bad", "bad did not begin to answer within 0.2 s")  # long before the provider's own clock
    ]


def test_the_slow_stream_guard_leaves_whole_answers_their_time(address, recorded):
    assert ask(address, "patient").status_code == 200
    assert recorded().provider == "bad"


def test_a_stream_that_stalls_is_broken_off(client, recorded):
    with pytest.raises(BROKEN):
        read_stream(client, "bad/stalled")
    assert "silent" in recorded().error


def test_a_client_that_reads_slowly_holds_the_upstream_back(address, upstream):
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=asked("bad/endless"), trust_env=False) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        assert settled(lambda: upstream.sent) < 30_000_000  # what the sockets on the way hold
    wait_for(lambda: upstream.open == 0)


def settled(value):
    """Return a value as soon as it no longer changes."""
    before = None
    while (now := value()) != before:
        before = now
        time.sleep(0.5)
    return now


def asked(model):
    return {"model": model, "messages": HELLO, "stream": True}


# Busy


def test_a_storm_of_429_ends_and_says_when_to_come_again(address, upstream, tries):
    answer = ask(address, "bad/storm")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "0.05")
    assert "slow down" in answer.text
    assert [attempt.status_code for attempt in tries()] == [429] * upstream.asked["storm"]


async def test_a_storm_of_429_is_not_answered_with_a_storm_of_calls(address, upstream):
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        calls = [client.post(f"{address}/v1/chat/completions", json=asked("bad/storm")) for _ in range(100)]
        answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {429}
    assert upstream.asked["storm"] <= 300


def test_a_busy_upstream_that_calms_down_is_waited_for(address, upstream, tries):
    assert ask(address, "bad/calming").json() == ANSWER
    assert upstream.asked["calming"] == 3
    assert [attempt.status_code for attempt in tries()][:2] == [429, 429]


def test_another_key_is_used_when_one_has_had_enough(address, upstream, store):
    answers = [ask(address, "keyed/one-key").status_code for _ in range(12)]
    assert answers == [200] * 12
    assert upstream.asked["one-key"] < 24  # the first key rests


# Failing


@pytest.mark.parametrize("manner", ["failing", "not-http", "empty"])
def test_passing_trouble_is_tried_again_and_then_told(address, upstream, recorded, manner):
    answer = ask(address, f"bad/{manner}")
    assert (answer.status_code, upstream.asked[manner]) == (500 if manner == "failing" else 502, 3)
    assert recorded().status_code == answer.status_code


@pytest.mark.parametrize("manner", ["failing", "not-http", "empty", "storm"])
@pytest.mark.parametrize("stream", [False, True])
def test_another_answers_for_one_that_fails(address, manner, stream, recorded):
    answer = ask(address, manner, stream=stream)
    assert answer.status_code == 200
    assert recorded().provider == "fake"


def test_a_model_that_keeps_failing_is_left_alone_for_a_while(address, upstream):
    for _ in range(5):
        answer = ask(address, "bad/failing")
    assert (answer.status_code, upstream.asked["failing"]) == (503, 5)
    assert "bad/failing" in answer.json()["error"]["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 5


# Nonsense


def test_an_error_in_the_middle_of_a_stream_reaches_the_client(client, recorded):
    with pytest.raises(openai.APIError, match="it fell over"):
        read_stream(client, "bad/error-event")
    assert recorded().error == "it fell over"


def test_an_error_as_the_body_of_a_200_is_in_the_record(address, recorded):
    ask(address, "bad/error-event")
    assert "it fell over" in recorded().error


def test_a_malformed_event_passes_as_it_is_and_is_in_the_record(address, recorded, store):
    answer = ask(address, "bad/malformed", stream=True)
    assert answer.content == STREAM[0] + b'data: {"choices": [{"del\n\n' + b"".join(STREAM[1:])
    assert store.blob(recorded().response_digest) == answer.content


@pytest.mark.parametrize("manner", ["not-utf8", "deep"])
def test_an_answer_that_nobody_can_read_is_in_the_record_byte_for_byte(address, recorded, store, manner):
    answer = ask(address, f"bad/{manner}")
    assert store.blob(recorded().response_digest) == answer.content


def test_it_goes_on_after_all_of_them(address, store):
    manners = ("cut", "short", "empty", "storm", "failing", "not-http", "error-event", "malformed", "not-utf8", "deep")
    for manner in manners:
        with suppress(httpx.HTTPError):
            ask(address, f"bad/{manner}", stream=True)
    assert ask(address, "bad/well").json() == ANSWER
    wait_for(lambda: len(store.select(Call)) == len(manners) + 1)
