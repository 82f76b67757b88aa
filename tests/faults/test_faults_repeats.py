"""Calls that come twice: retries of a client are one call, and a question asked before is answered without asking."""

import threading

import httpx
import openai
import pytest
from bad_upstream import STREAM
from gateway_parts import wait_for
from served import HELLO

from doorstep.types import Call

CALL_ID = "x-doorstep-call-id"


@pytest.fixture
def post(address):
    """Send a chat, as an SDK does for the ``count``-th time after the first."""

    def posted(model="bad/well", *, count=0, stream=False, **headers):
        body = {"model": model, "messages": HELLO, "stream": stream}
        given = {"x-stainless-retry-count": str(count)} | {
            name.replace("_", "-"): said for name, said in headers.items()
        }
        url = f"{address}/v1/chat/completions"
        return httpx.post(url, json=body, headers=given, timeout=30, trust_env=False)

    return posted


# Retries


def test_a_retry_whose_answer_was_lost_gets_it_and_is_one_call(post, upstream, store):
    first, again = post(), post(count=1)
    assert (again.content, again.headers[CALL_ID]) == (first.content, first.headers[CALL_ID])
    post("bad/well", count=0)
    calls = wait_for(lambda: len(found := store.select(Call)) == 2 and found)
    assert upstream.asked["well"] == len(calls) == 2


def test_a_retry_joins_the_call_that_is_still_running(post, upstream):
    answers = []
    first = threading.Thread(target=lambda: answers.append(post("bad/drip", stream=True)))
    first.start()
    wait_for(lambda: upstream.asked["drip"])
    answers.append(post("bad/drip", stream=True, count=1))
    first.join()
    assert {answer.content for answer in answers} == {b"".join(STREAM)}
    assert len({answer.headers[CALL_ID] for answer in answers}) == upstream.asked["drip"] == 1


def test_the_sdks_retry_of_a_call_that_it_gave_up_names_it(address, upstream, store):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=1, timeout=1) as client:
        client.chat.completions.create(model="keyed/late", messages=HELLO)
    first, second = wait_for(lambda: len(found := store.select(Call, order_by="started_us")) == 2 and found)
    assert (first.status_code, second.status_code) == (499, 200)
    assert (first.retry_of, second.retry_of) == (None, first.call_id)
    assert upstream.asked["late"] == 2


def test_calls_that_are_equal_and_no_retries_are_two(post, upstream):
    assert post().headers[CALL_ID] != post().headers[CALL_ID]
    assert upstream.asked["well"] == 2


# Cache


def test_a_question_asked_before_costs_nothing(post, upstream, store):
    asking = {"x_doorstep_cache": "on"}
    first, again = post(**asking), post(**asking)
    assert again.content == first.content
    assert "x-doorstep-cache" not in first.headers
    assert again.headers["x-doorstep-cache"] == "hit"
    assert again.headers[CALL_ID] != first.headers[CALL_ID]
    assert upstream.asked["well"] == 1
    calls = wait_for(lambda: len(found := store.select(Call, order_by="started_us")) == 2 and found)
    assert [call.cached for call in calls] == [False, True]
    assert calls[1].cost_microusd == 0


def test_a_broken_answer_is_not_kept(address, upstream, post):
    assert post("bad/cut", x_doorstep_cache="on").status_code == 502
    assert post("bad/cut", x_doorstep_cache="on").status_code in (502, 503)
    assert post(x_doorstep_cache="on").status_code == 200


def test_a_header_that_says_nothing_known_is_refused(post):
    answer = post(x_doorstep_cache="perhaps")
    assert answer.status_code == 400
    assert "max-age" in answer.json()["error"]["message"]
