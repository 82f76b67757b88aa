"""Retries of clients and the calls that they join."""

import asyncio

import pytest
from clocks import Clock

from doorstep.errors import ProviderError
from doorstep.gateway import coalesce
from doorstep.gateway.coalesce import FirstFailed, Join, Lead, Retries
from doorstep.gateway.providers.base import Answer, pieces_of

BODY = b'{"model":"openai/m","messages":[{"role":"user","content":"hello"}]}'


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def retries(clock):
    return Retries(clock)


@pytest.fixture
def enter(retries):
    """Enter a call that the SDK sends for the ``count``-th time after the first."""

    def entered(call_id="call_1", *, count=0, body=BODY, key_id="key_1", run_id="run_1", path="/v1/x", **more):
        headers = {b"x-stainless-retry-count": str(count).encode()}
        if "idempotency" in more:
            headers = {b"idempotency-key": more["idempotency"]}
        return retries.enter(call_id, key_id=key_id, run_id=run_id, path=path, headers=headers, body=body)

    return entered


def land(lead, *pieces):
    lead.flight.begin(Answer(body=b"", content_type="text/event-stream"))
    for piece in pieces:
        lead.flight.add(piece)
    lead.flight.end()


async def read(join):
    answer = await join.flight.answer()
    return b"".join([piece async for piece in pieces_of(answer.body)])


async def test_a_retry_of_a_call_that_was_answered_gets_the_same_answer(enter):
    land(enter(), b"one", b"two")
    retry = enter("call_2", count=1)
    assert isinstance(retry, Join)
    assert retry.flight.call_id == "call_1"
    assert await read(retry) == b"onetwo"


async def test_a_retry_of_a_call_under_way_gets_its_answer_from_the_beginning(enter):
    lead = enter()
    retry = asyncio.ensure_future(read(enter(count=1)))
    await asyncio.sleep(0)
    lead.flight.begin(Answer(body=b""))
    lead.flight.add(b"one")
    await asyncio.sleep(0)
    lead.flight.add(b"two")
    lead.flight.end()
    assert await retry == b"onetwo"


async def test_many_retries_read_at_their_own_pace(enter):
    lead = enter()
    retries = [asyncio.ensure_future(read(enter(count=count))) for count in range(1, 20)]
    await asyncio.sleep(0)
    land(lead, b"a", b"b")
    assert set(await asyncio.gather(*retries)) == {b"ab"}


def test_a_call_that_is_no_retry_is_made(enter):
    land(enter(), b"one")
    assert isinstance(enter("call_2", count=0), Lead)


@pytest.mark.parametrize("other", [{"key_id": "key_2"}, {"run_id": None}, {"path": "/v1/y"}, {"body": BODY + b" "}])
def test_a_retry_joins_nothing_but_its_own_call(enter, other):
    land(enter(), b"one")
    retry = enter("call_2", count=1, **other)
    assert isinstance(retry, Lead)
    assert retry.retry_of is None


def test_bodies_that_differ_far_from_their_end_are_different(enter):
    land(enter(body=b"a" + b"x" * 1000), b"one")
    assert isinstance(enter(count=1, body=b"b" + b"x" * 1000), Lead)


def test_a_retry_of_a_failed_call_is_made_and_names_it(enter):
    enter().flight.fail()
    second = enter("call_2", count=1)
    assert second.retry_of == "call_1"
    second.flight.fail()
    assert enter("call_3", count=2).retry_of == "call_2"


async def test_a_retry_that_waited_for_a_call_that_fails_is_on_its_own(enter):
    lead = enter()
    retry = asyncio.ensure_future(read(enter(count=1)))
    await asyncio.sleep(0)
    lead.flight.fail()
    with pytest.raises(FirstFailed):
        await retry


async def test_a_retry_in_the_middle_of_an_answer_that_breaks_off_breaks_off(enter):
    lead = enter()
    lead.flight.begin(Answer(body=b""))
    lead.flight.add(b"one")
    answer = await enter(count=1).flight.answer()
    assert await answer.body.next() == b"one"
    lead.flight.fail()
    with pytest.raises(ProviderError, match="broke off"):
        await answer.body.next()


async def test_an_answer_that_was_given_does_not_fail_afterwards(enter):
    lead = enter()
    land(lead, b"one")
    lead.flight.fail()
    assert await read(enter(count=1)) == b"one"


def test_two_equal_calls_at_once_cannot_be_told_apart(enter):
    first, second = enter("call_1"), enter("call_2")
    assert isinstance(enter("call_3", count=1), Lead)
    land(first, b"one")
    land(second, b"two")
    assert isinstance(enter("call_4", count=1), Lead)


def test_the_same_idempotency_key_is_the_same_call(enter):
    land(enter(idempotency=b"k1"), b"one")
    assert isinstance(enter(idempotency=b"k1"), Join)
    assert isinstance(enter(idempotency=b"k2"), Lead)
    assert isinstance(enter(idempotency=b"k1", body=BODY + b" "), Lead)
    assert isinstance(enter(idempotency=b"k2", key_id="key_2"), Lead)


def test_a_client_that_does_not_say_when_it_tries_again_is_left_alone(retries):
    assert retries.enter("call_1", key_id="", run_id=None, path="/", headers={}, body=BODY) is None
    assert retries.held == 0


def test_a_call_that_ended_long_ago_is_not_joined(enter, clock, retries):
    land(enter(), b"one")
    clock.now += coalesce.KEPT_S
    assert isinstance(enter(count=1), Lead)
    assert retries.held == 1


def test_the_oldest_leave_when_there_are_too_many(enter, retries):
    for number in range(30):
        land(enter(f"call_{number}", body=b"%d" % number), b"x" * 900_000)
    assert retries.held < 10
    assert isinstance(enter(count=1, body=b"0"), Lead)
    assert isinstance(enter(count=1, body=b"29"), Join)


def test_an_answer_that_is_too_large_cannot_be_joined(enter):
    land(enter(), b"x" * (coalesce.ANSWER_BYTES + 1))
    assert isinstance(enter("call_2", count=1), Lead)
