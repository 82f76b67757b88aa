"""Answers of Responses: cut anywhere, written and read again, broken, and of shapes that nobody sends."""

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from dialect_tools import collect, cut, merged, pieces
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import BadInput, ProviderError
from doorstep.gateway.chat import (
    Begin,
    ChatRequest,
    Delta,
    End,
    RefusalDelta,
    SampledText,
    ThinkingDelta,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from doorstep.gateway.dialects import openai_chat, openai_responses
from doorstep.gateway.dialects.base import Head

GOLDEN = Path(__file__).parent / "golden"
TOOLS = (GOLDEN / "openai_responses" / "answers" / "tools.sse").read_bytes()
ASKED = ChatRequest(messages=[])


async def read(body: bytes, *, stream: bool = True):
    return await collect(openai_responses.read_answer(pieces([body]), stream=stream))


async def write(events, *, stream: bool) -> bytes:
    head = Head(model="m", stream=stream)
    return b"".join(
        await collect(openai_responses.write(pieces(events), head=head, answer_id="1", model="m", request=ASKED))
    )


def event(kind: str, **fields) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


@given(st.lists(st.integers(0, 1 << 20), max_size=12))
async def test_a_stream_may_be_cut_anywhere(places):
    whole = await read(TOOLS)
    assert await collect(openai_responses.read_answer(pieces(cut(TOOLS, places)), stream=True)) == whole


async def test_a_stream_may_come_byte_by_byte():
    single = [TOOLS[place : place + 1] for place in range(len(TOOLS))]
    assert await collect(openai_responses.read_answer(pieces(single), stream=True)) == await read(TOOLS)


# Written, then read again

TEXT = st.text(min_size=1, max_size=8)
TOKENS = st.lists(
    st.builds(
        lambda text, top: SampledText(text, text.encode(), -0.5, top), TEXT, st.just([SampledText("a", b"a", -1)])
    ),
    max_size=2,
)
SEALED = TEXT | TEXT.map("openai:".__add__)
THOUGHT = st.builds(
    lambda text, seal, name: [ThinkingDelta(0, text, id=name), ThinkingDelta(0, signature=seal, id=name)],
    TEXT,
    SEALED,
    st.sampled_from(["rs_1", "rs_2"]),
)
SAID = st.one_of(
    st.builds(lambda text, tokens: [Delta(0, text, tokens)], TEXT, TOKENS),
    st.builds(lambda text: [RefusalDelta(0, text)], TEXT),
    st.builds(lambda seal: [ThinkingDelta(0, redacted=seal, id="rs_3")], SEALED),
    THOUGHT,
    st.builds(lambda name, parts: [name, *parts], TEXT, st.lists(TEXT, min_size=1, max_size=3)),  # a tool call
)


@st.composite
def answers(draw):
    events, calls = [], 0
    for part in draw(st.lists(SAID, max_size=6)):
        if isinstance(part[0], str):
            events.append(ToolCallBegin(0, calls, f"call_{calls}", part[0]))
            events += [ToolCallDelta(0, calls, text) for text in part[1:]]
            calls += 1
        else:
            events += part
    refused = any(isinstance(said, RefusalDelta) for said in events)
    natural = "tool_calls" if calls else "refusal" if refused else "stop"
    reason = draw(st.sampled_from([natural, "length", "content_filter"]))
    counts = st.integers(0, 1000)
    usage = Usage(
        input_tokens=draw(counts),
        output_tokens=draw(counts),
        cached_tokens=draw(counts),
        cache_write_tokens=draw(counts),
        reasoning_tokens=draw(counts),
    )
    return [Begin("up_1", "m"), *events, End(0, reason), usage]


@given(answers(), st.booleans())
async def test_a_written_answer_is_read_as_the_same(events, stream):
    assert merged(await read(await write(events, stream=stream), stream=stream)) == merged(events)


@given(answers())
async def test_what_a_stream_ends_with_is_the_whole_answer(events):
    stream = await write(events, stream=True)
    data = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: ")]
    assert [each["sequence_number"] for each in data] == list(range(len(data)))
    assert data[-1]["response"]["output"] == json.loads(await write(events, stream=False))["output"]
    assert openai_responses.understand(stream) == openai_responses.understand(await write(events, stream=False))


async def test_calls_that_grow_in_turns_stay_apart():
    body = (GOLDEN / "openai_chat" / "answers" / "tools.sse").read_bytes()
    events = await collect(openai_chat.read_answer(pieces([body]), stream=True))
    found = openai_responses.understand(await write(events, stream=True)).messages[0]["output"]
    assert [json.loads(item["arguments"]) for item in found] == [{"city": "Zürich"}, {"city": "Genève"}]


async def test_a_refusal_without_words_does_not_look_like_an_answer():
    body = json.loads(await write([End(0, "refusal"), Usage()], stream=False))
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})


async def test_counts_that_are_not_known_are_not_said_to_be_zero():
    assert json.loads(await write([End(0, "stop"), Usage(output_tokens=3)], stream=False))["usage"] is None


async def test_nothing_is_sent_before_something_is_said():
    head = Head(model="m", stream=True)
    events = pieces([Begin("up_1", "m"), Delta(0, "Hi"), End(0, "stop"), Usage()])
    written = openai_responses.write(events, head=head, answer_id="1", model="m", request=ASKED)
    first = await anext(written)
    assert first.startswith(b"event: response.created\n")
    assert b'"delta":"Hi"' in first


# Broken answers


@pytest.mark.parametrize("end", range(0, len(TOOLS) - 3, 97))
async def test_a_stream_without_its_end_is_an_error(end):
    with pytest.raises(ProviderError):
        await read(TOOLS[:end])


FAILED = {"status": "failed", "output": [], "error": {"code": "rate_limit_exceeded", "message": "slow down"}}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (event("response.failed", response=FAILED), 429, "slow down"),
        (event("error", code="server_error", message="oops", param=None, sequence_number=3), 502, "oops"),
        (event("error", error={"type": "invalid_request_error", "message": "too long"}), 400, "too long"),
        (event("response.output_item.added", item={"type": "web_search_call"}), 502, "'web_search_call'"),
        (event("response.function_call_arguments.delta", output_index=1, delta="{"), 502, "has not begun"),
        (event("response.output_item.added", item={"type": "function_call"}), 502, "without saying its name"),
        (event("response.completed", response={"status": "completed"}), 502, "no complete response"),
        (b"data: {oops\n\n", 502, "cannot be read"),
        (b"", 502, "broke off"),
        (b"data: [DONE]\n\n", 502, "broke off"),
    ],
)
async def test_a_stream_that_fails_says_why(body, status, message):
    with pytest.raises(ProviderError, match=message) as caught:
        await read(body)
    assert caught.value.status == status
    assert caught.value.retryable is (status != 400)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}",
        b'{"error":{"message":"no"}}',
        b'{"status":"in_progress","output":[]}',
        b'{"status":"cancelled"}',
    ],
)
async def test_a_whole_answer_that_is_none_is_an_error(body):
    with pytest.raises(ProviderError):
        await read(body, stream=False)


# Understanding


def test_a_stream_that_was_cut_is_understood_as_far_as_it_goes():
    cut_off = TOOLS[: TOOLS.index(b"response.output_text.done")]
    reading = openai_responses.understand(cut_off)
    assert (reading.texts, reading.complete) == (["Ich frage für Zürich und Genève."], False)
    assert reading.model == "gpt-5.2-2026-10-01"


def test_an_answer_is_understood_with_its_items():
    reading = openai_responses.understand(TOOLS)
    assert (reading.texts, reading.finish_reason) == (["Ich frage für Zürich und Genève."], "tool_calls")
    assert (reading.complete, reading.usage.cached_tokens, reading.usage.reasoning_tokens) == (True, 128, 64)
    kinds = [item["type"] for item in reading.messages[0]["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]


def test_an_answer_with_items_of_hosted_tools_is_understood():
    search = {"type": "web_search_call", "id": "ws_1", "action": {"type": "search"}, "arguments": {"query": "x"}}
    said = {"type": "message", "content": [{"type": "output_text", "text": "Found"}]}
    reading = openai_responses.understand(json.dumps({"status": "completed", "output": [search, said]}).encode())
    assert reading.texts == ["Found"]
    assert reading.messages == [{"role": "assistant", "output": [search, said]}]


@pytest.mark.parametrize(
    "body",
    [event("response.failed", response=FAILED), event("error", message="slow down"), json.dumps(FAILED).encode()],
)
def test_a_failure_is_understood(body):
    reading = openai_responses.understand(body)
    assert (reading.error, reading.complete) == ("slow down", False)


# Anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def damaged(draw, value):
    """A copy of a JSON value with another value, or none, somewhere in it."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    place = draw(st.sampled_from(sorted(value)) if isinstance(value, dict) else st.integers(0, len(value) - 1))
    copy = dict(value) if isinstance(value, dict) else list(value)
    if draw(st.integers(0, 9)) == 0:
        del copy[place]
    else:
        copy[place] = draw(damaged(copy[place]))
    return copy


REQUESTS = [json.loads(path.read_bytes()) for path in (GOLDEN / "openai_responses" / "requests").glob("*.json")]
EVENTS = [json.loads(line[6:]) for line in TOOLS.split(b"\n") if line.startswith(b"data: ")]


def ask_everything(body: bytes) -> None:
    for question in (
        openai_responses.head,
        openai_responses.messages,
        openai_responses.sampling,
        openai_responses.read,
    ):
        try:
            answer = question(body)
            if isinstance(answer, ChatRequest):
                openai_responses.write_request(answer, head=Head(model="m"), model="m")
        except BadInput:
            pass
    assert isinstance(openai_responses.understand(body).complete, bool)


async def answer_everything(body: bytes) -> None:
    for stream in (True, False):
        with contextlib.suppress(ProviderError):
            assert isinstance((await read(body, stream=stream))[-1], Usage)


@given(st.binary() | st.binary().map(b'{"model":"m",'.__add__) | JSON.map(msgspec.json.encode))
async def test_any_bytes_give_a_value_or_a_clear_error(body):
    ask_everything(body)
    await answer_everything(body)
    await answer_everything(b"data: " + body + b"\n\n")


@given(st.sampled_from(REQUESTS).flatmap(damaged))
def test_a_damaged_request_gives_a_value_or_a_clear_error(request):
    ask_everything(msgspec.json.encode(request))


@given(damaged(EVENTS))
async def test_a_damaged_stream_gives_a_value_or_a_clear_error(events):
    lines = events if isinstance(events, list) else [events]
    body = b"".join(b"data: " + msgspec.json.encode(each) + b"\n\n" for each in lines)
    await answer_everything(body)
    assert isinstance(openai_responses.understand(body).complete, bool)
