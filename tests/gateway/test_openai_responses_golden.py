"""OpenAI Responses against recorded wire: what providers and clients really send, and what it means.

``golden/openai_responses`` has requests and answers as they are on the wire. Beside each stands what is read from it
and, in ``written``, what is written from that again.
"""

import json
import re
from pathlib import Path

import msgspec
import pytest
from dialect_tools import as_json, collect, merged, pieces

from doorstep.gateway.chat import ChatRequest
from doorstep.gateway.dialects import openai_responses
from doorstep.gateway.dialects.base import Head

GOLDEN = Path(__file__).parent / "golden" / "openai_responses"
REQUESTS = sorted(path.stem for path in (GOLDEN / "requests").glob("*.json"))
ANSWERS = sorted(path.name for path in (GOLDEN / "answers").glob("*.*"))


def expected(kind: str, name: str):
    return json.loads((GOLDEN / kind / f"{name}.json").read_text("utf-8"))


async def read_answer(name: str):
    body = (GOLDEN / "answers" / name).read_bytes()
    return await collect(openai_responses.read_answer(pieces([body]), stream=name.endswith(".sse")))


async def write(events, name: str) -> bytes:
    head = Head(model="m", stream=name.endswith(".sse"))
    request = ChatRequest(messages=[], logprobs="logprobs" in name)
    written = openai_responses.write(pieces(events), head=head, answer_id="1", model="m", request=request)
    return b"".join(await collect(written))


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_read(name):
    request = openai_responses.read((GOLDEN / "requests" / f"{name}.json").read_bytes())
    assert msgspec.to_builtins(request) == expected("canonical", name)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_written(name):
    request = msgspec.convert(expected("canonical", name), ChatRequest)
    head = openai_responses.head((GOLDEN / "requests" / f"{name}.json").read_bytes())
    assert json.loads(openai_responses.write_request(request, head=head, model=head.model)) == expected("written", name)


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_read(name):
    assert as_json(await read_answer(name)) == expected("events", name)


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_written(name):
    text = (await write(await read_answer(name), name)).decode()
    wanted = (GOLDEN / "written" / name).read_text("utf-8").rstrip("\n")
    assert re.sub(r'"(created_at|completed_at)":\d+', r'"\1":0', text).rstrip("\n") == wanted


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_written_answer_is_read_as_the_same(name):
    events = await read_answer(name)
    again = openai_responses.read_answer(pieces([await write(events, name)]), stream=name.endswith(".sse"))
    assert merged(await collect(again)) == merged(events)


async def test_whole_items_and_streamed_ones_say_the_same():
    streamed = merged(await read_answer("tools.sse"))
    assert streamed == merged(await read_answer("tools.json")) == merged(await read_answer("whole_items.sse"))
