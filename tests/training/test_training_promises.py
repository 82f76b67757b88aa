"""What is kept for a client to fetch: limits, large answers, whose it is, and the feed of a sampling session."""

import asyncio

import pytest

from doorstep.errors import LimitReached, NotFound
from doorstep.training import app
from doorstep.training import promises as module
from doorstep.training.capacity import Capacity
from doorstep.training.feeds import CLONE
from doorstep.training.journal import Journal
from doorstep.training.promises import PROTO, SAMPLE, Answer, Promises


@pytest.fixture
def promises(tmp_path):
    return Promises(Journal(tmp_path / "journal"))


def told(completions):
    return [(each.state, each.request_id) for each in completions]


async def test_who_leaves_too_much_is_told_to_wait_and_others_are_not(promises, monkeypatch):
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    first = promises.open("s:1", "me", SAMPLE)
    promises.open("s:2", "me", SAMPLE)
    with pytest.raises(LimitReached, match="2 operations of yours") as caught:
        promises.open("s:3", "me", SAMPLE)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 1.0)
    assert promises.open("t:1", "other", SAMPLE)
    first(Answer(b"done"))
    promises.fetched("s:1")
    assert promises.open("s:3", "me", SAMPLE)


async def test_bytes_are_those_of_requests_and_answers_that_wait(promises, monkeypatch):
    monkeypatch.setattr(module, "MAX_OPEN_BYTES", 100)
    promises.open("s:1", "me", SAMPLE, size=60)(Answer(b"x" * 90))
    with pytest.raises(LimitReached):
        promises.open("s:2", "me", SAMPLE, size=20)
    promises.release(["s:1"], "me")
    assert promises.open("s:2", "me", SAMPLE, size=100)


async def test_a_promise_is_its_tenants_alone(promises):
    promises.open("s:1", "me", SAMPLE)(Answer(b"mine"))
    with pytest.raises(NotFound):
        await promises.wait("s:1", "other", 0)
    promises.cancel("s:1", "other")
    promises.release(["s:1"], "other")
    assert (await promises.completed(("s", 0), "other", 0, 0))[0] == []
    assert (await promises.wait("s:1", "me", 0)).body == b"mine"


async def test_a_feed_tells_what_is_ready_once(promises):
    fulfil = [promises.open(f"s:{number}", "me", SAMPLE) for number in range(3)]
    fulfil[1](Answer(b"x", PROTO))
    fulfil[0](Answer(b"error"))
    ready, cursor = await promises.completed(("s", 0), "me", 0, 0)
    assert told(ready) == [("finished", "s:1"), ("failed", "s:0")]
    waiting = asyncio.create_task(promises.completed(("s", 0), "me", cursor, 5))
    await asyncio.sleep(0)
    fulfil[2](Answer(b"x", PROTO))
    ready, cursor = await waiting
    assert told(ready) == [("finished", "s:2")]
    assert await promises.completed(("s", 0), "me", cursor, 0.001) == ([], cursor)


async def test_each_copy_of_a_client_has_a_feed_of_its_own(promises):
    promises.open(f"s:{CLONE + 4}", "me", SAMPLE)(Answer(b"x", PROTO))
    assert told((await promises.completed(("s", 1), "me", 0, 0))[0]) == [("finished", f"s:{CLONE + 4}")]
    assert (await promises.completed(("s", 0), "me", 0, 0.001))[0] == []


async def test_a_large_answer_is_announced_first(door, monkeypatch):
    monkeypatch.setattr(app, "INLINE_BYTES", 10)
    made = await door.post("/optim_step", model_id=await door.model(), seq_id=1)
    announced = await door.post("/retrieve_future", allow_metadata_only=True, **made)
    answer = await door.fetch(made["request_id"])
    assert announced == {"status": "complete_metadata", "response_payload_size": len(answer.content)}


async def test_calls_beyond_the_capacity_wait_their_turn_and_say_why():
    capacity, done = Capacity(100), []

    async def call(name, size):
        async with capacity.enter(name, size):
            await asyncio.sleep(0.001)
            done.append(name)

    calls = [asyncio.create_task(call(name, size)) for name, size in [("a", 60), ("b", 300), ("c", 10), ("d", 90)]]
    await asyncio.sleep(0)
    assert [bool(capacity.why(name)) for name in "abcd"] == [False, True, True, True]
    await asyncio.gather(*calls)
    assert done == ["a", "b", "c", "d"]


async def test_one_who_stops_waiting_lets_the_next_in():
    capacity = Capacity(10)

    async def call(name):
        async with capacity.enter(name, 10):
            await asyncio.sleep(0.01)

    first, second, third = (asyncio.create_task(call(name)) for name in "abc")
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait_for(third, 5)
    assert first.done()
