"""OpenAI chat against recorded wire: what providers and clients really send, and what it means.

``golden/openai_chat`` has requests and answers as they are on the wire. Beside each stands what is read from it and, in
``written``, what is written from that again.
"""

import json
import re
from pathlib import Path

import msgspec
import pytest
from dialect_tools import as_json, collect, pieces

from doorstep.gateway.chat import ChatRequest
from doorstep.gateway.dialects import openai_chat

GOLDEN = Path(__file__).parent / "golden" / "openai_chat"
REQUESTS = sorted(path.stem for path in (GOLDEN / "requests").glob("*.json"))
ANSWERS = sorted(path.name for path in (GOLDEN / "answers").glob("*.*"))


def expected(kind: str, name: str):
    return json.loads((GOLDEN / kind / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_read(name):
    request = openai_chat.read((GOLDEN / "requests" / f"{name}.json").read_bytes())
    assert msgspec.to_builtins(request) == expected("canonical", name)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_written(name):
    request = msgspec.convert(expected("canonical", name), ChatRequest)
    head = openai_chat.head((GOLDEN / "requests" / f"{name}.json").read_bytes())
    written = json.loads(openai_chat.write_request(request, head=head, model=head.model))
    assert written == expected("written", name)
    assert openai_chat.read(json.dumps(written).encode()).max_tokens == request.max_tokens


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_read(name):
    body = (GOLDEN / "answers" / name).read_bytes()
    events = await collect(openai_chat.read_answer(pieces([body]), stream=name.endswith(".sse")))
    assert as_json(events) == expected("events", name)


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_written(name):
    body = (GOLDEN / "answers" / name).read_bytes()
    stream = name.endswith(".sse")
    events = await collect(openai_chat.read_answer(pieces([body]), stream=stream))
    head = openai_chat.Head(model="m", stream=stream)
    request = ChatRequest(
        messages=[], n=1 + max(getattr(event, "index", 0) for event in events), logprobs="vllm" in name
    )
    written = openai_chat.write(pieces(events), head=head, answer_id="call_1", model="m", request=request)
    text = b"".join(await collect(written)).decode()
    assert (
        re.sub(r'"created":\d+', '"created":0', text)
        == (GOLDEN / "written" / name).read_text("utf-8").rstrip("\n") + "\n\n" * stream
    )
