"""Anthropic's answers, whole and streamed: read into events, written out of them, and understood afterwards."""

import json

import pytest
from anthropic_parts import ASKED, as_json, golden, merged, pieces, read, write
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import ProviderError
from doorstep.gateway.chat import (
    Begin,
    Delta,
    End,
    RefusalDelta,
    Thinking,
    ThinkingDelta,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from doorstep.gateway.dialects import anthropic_messages, openai_chat, openai_responses
from doorstep.gateway.dialects.base import Head

STREAM = golden("stream_interleaved.sse")
WHOLE = golden("answer_interleaved.json")
LAST = b'data: {"type":"message_stop"              }'


def sse(*events):
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events
    )


def wire_events(stream):
    return [json.loads(line[5:]) for line in stream.splitlines() if line.startswith(b"data:")]


def message(*content, **changes):
    about = {"type": "message", "id": "msg_1", "model": "claude", "stop_reason": "end_turn", "content": list(content)}
    return json.dumps(about | changes).encode()


# Reading


@pytest.mark.parametrize("name", ["stream_interleaved.sse", "answer_interleaved.json", "answer_refusal.json"])
async def test_an_answer_is_read_whole(name):
    events = await read(golden(name), stream=name.endswith(".sse"))
    assert as_json(events) == json.loads(golden(f"{name}.events.json"))


@given(st.integers(1, 200))
async def test_it_does_not_matter_where_the_pieces_end(size):
    assert await read(STREAM, stream=True, size=size) == await read(STREAM, stream=True)
    assert await read(WHOLE, stream=False, size=size) == await read(WHOLE, stream=False)


@pytest.mark.parametrize("cut", range(0, len(STREAM) - len(LAST), 97))
async def test_a_stream_that_breaks_off_is_a_failure(cut):
    with pytest.raises(ProviderError, match=r"broke off|cannot be understood"):
        await read(STREAM[:cut], stream=True)


async def test_lines_may_end_as_on_windows():
    assert await read(STREAM.replace(b"\n", b"\r\n"), stream=True) == await read(STREAM, stream=True)


@pytest.mark.parametrize(
    ("kind", "status", "retryable"),
    [
        ("overloaded_error", 529, True),
        ("rate_limit_error", 429, True),
        ("api_error", 500, True),
        ("invalid_request_error", 400, False),
        ("brand_new_error", 502, True),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_is_a_failure_with_its_status(kind, status, retryable, stream):
    error = {"type": "error", "error": {"type": kind, "message": "Too busy"}}
    with pytest.raises(ProviderError, match="Too busy") as caught:
        await read(sse(error) if stream else json.dumps(error).encode(), stream=stream)
    assert (caught.value.status, caught.value.retryable) == (status, retryable)


@pytest.mark.parametrize(
    ("stop_reason", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "pause"),
        ("refusal", "refusal"),
    ],
)
async def test_why_an_answer_ended(stop_reason, reason):
    events = await read(message(stop_reason=stop_reason, stop_sequence="x"), stream=False)
    assert End(0, reason, "x") in events


@pytest.mark.parametrize(
    "answer",
    [
        message(stop_reason="something_new"),
        message(stop_reason=None),
        message({"type": "server_tool_use", "id": "i", "name": "web_search", "input": {}}),
        b'{"object":"chat.completion"}',
        b'{"type":"message","content":3}',
        b"<html>",
        b"",
        b'{"a":' * 5000,
    ],
)
async def test_an_answer_that_cannot_be_translated_is_a_failure(answer):
    with pytest.raises(ProviderError):
        await read(answer, stream=False)


async def test_arguments_without_a_call_are_a_failure():
    delta = {"type": "input_json_delta", "partial_json": "{}"}
    with pytest.raises(ProviderError, match="no tool call"):
        await read(sse({"type": "content_block_delta", "index": 0, "delta": delta}), stream=True)


async def test_what_is_new_between_the_events_is_passed_over():
    news = sse({"type": "brand_new", "index": 3})
    assert await read(news + STREAM, stream=True) == await read(STREAM, stream=True)


async def test_the_input_counts_what_was_cached_too():
    usage = {"input_tokens": 3, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 100, "output_tokens": 7}
    *_, counted = await read(message(usage=usage), stream=False)
    assert counted == Usage(input_tokens=123, output_tokens=7, cached_tokens=100, cache_write_tokens=20)


async def test_counts_that_are_not_told_stay_unknown():
    *_, counted = await read(message(), stream=False)
    assert counted == Usage()
    *_, counted = await read(await write([End(0, "stop"), Usage()], stream=True), stream=True)
    assert counted == Usage()


# Writing


TEXTS = st.text(min_size=1, max_size=8)
SIGNED = st.builds(lambda text, signed: [ThinkingDelta(0, text), ThinkingDelta(0, signature=signed)], TEXTS, TEXTS)
UNSIGNED = st.builds(
    lambda text, item: [ThinkingDelta(0, text, id=item), Delta(0, ".")], TEXTS, st.sampled_from([None, "rs"])
)
ARGUMENTS = st.dictionaries(TEXTS, TEXTS, max_size=2).map(lambda fields: [json.dumps(fields, ensure_ascii=False)])
WORDS = TEXTS.map(lambda text: [Delta(0, text)])
REDACTED = TEXTS.map(lambda data: [ThinkingDelta(0, redacted=data)])
SAID = WORDS | SIGNED | UNSIGNED | REDACTED | ARGUMENTS
COUNTS = st.none() | st.integers(0, 50)
USAGES = st.builds(
    lambda fresh, out, cached, made, thought: Usage(
        input_tokens=fresh + (cached or 0) + (made or 0),
        output_tokens=out,
        cached_tokens=cached,
        cache_write_tokens=made,
        reasoning_tokens=thought,
    ),
    *(st.integers(1, 50), st.integers(0, 50), COUNTS, COUNTS, COUNTS),
)


@st.composite
def answers(draw):
    events, calls = [Begin("msg_call_1", "claude")], 0
    for said in draw(st.lists(SAID, max_size=6)):
        if isinstance(said[0], str):  # arguments
            cut = draw(st.integers(0, len(said[0])))
            events.append(ToolCallBegin(0, calls, f"toolu_{calls}", "f"))
            events += [ToolCallDelta(0, calls, part) for part in (said[0][:cut], said[0][cut:]) if part]
            calls += 1
        else:
            events += said
    ends = (
        [End(0, "tool_calls")] if calls else [End(0, "stop"), End(0, "stop", "###"), End(0, "length"), End(0, "pause")]
    )
    return [*events, draw(st.sampled_from(ends)), draw(USAGES)]


@given(answers(), st.booleans())
async def test_what_was_written_is_read_back(events, stream):
    assert merged(await read(await write(events, stream=stream), stream=stream)) == merged(events)


@given(answers())
async def test_each_delta_is_in_a_block_of_its_kind(events):
    kinds, opened, closed = {}, [], []
    for event in wire_events(await write(events, stream=True)):
        if event["type"] == "content_block_start":
            opened.append(event["index"])
            kinds[event["index"]] = event["content_block"]["type"]
        elif event["type"] == "content_block_delta":
            assert event["index"] not in closed
            home = {"text_delta": "text", "input_json_delta": "tool_use"}.get(event["delta"]["type"], "thinking")
            assert kinds[event["index"]] == home
        elif event["type"] == "content_block_stop":
            closed.append(event["index"])
    assert opened == closed == list(range(len(opened)))


async def test_a_stream_of_chat_with_overlapping_tools_is_written():
    events = await read(golden("chat_stream.sse"), stream=True, dialect=openai_chat)
    assert await write(events, stream=True) == golden("chat_stream.anthropic.sse")


@pytest.mark.parametrize("dialect", [openai_chat, openai_responses])
@pytest.mark.parametrize(("source", "stream"), [(STREAM, True), (WHOLE, False)])
@pytest.mark.parametrize("as_stream", [True, False])
async def test_an_answer_goes_to_openai_and_back_with_nothing_lost(dialect, source, stream, as_stream):
    events = await read(source, stream=stream)
    there = await write(events, stream=as_stream, dialect=dialect)
    back = [unnamed(event) for event in await read(there, stream=as_stream, dialect=dialect)]
    for kind in (
        Delta,
        ThinkingDelta,
        ToolCallBegin,
        ToolCallDelta,
        End,
    ):  # a whole answer of chat has one order of them
        assert [event for event in merged(back) if isinstance(event, kind)] == [
            event for event in merged(events) if isinstance(event, kind)
        ]
    assert back[-1].input_tokens == events[-1].input_tokens


def unnamed(event):
    """Without the id that Responses gives to every piece of reasoning."""
    return ThinkingDelta(0, event.text, event.signature, event.redacted) if isinstance(event, ThinkingDelta) else event


@given(st.text(st.characters(codec="utf-8", exclude_characters=":"), min_size=1), TEXTS | st.none(), st.booleans())
async def test_a_client_brings_the_id_of_a_reasoning_item_back(item, seal, redacted):
    thought = ThinkingDelta(0, redacted=seal or "x", id=item) if redacted else ThinkingDelta(0, "why", seal, None, item)
    turn = {"role": "assistant", "content": json.loads(await write([thought, End(0, "stop")], stream=False))["content"]}
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": [turn]}).encode()
    block = Thinking(text=thought.text, signature=thought.signature, redacted=thought.redacted, id=item)
    assert anthropic_messages.read(body).messages[0].blocks == [block]


async def test_a_refusal_is_told_apart_from_words():
    answer = json.loads(await write([RefusalDelta(0, "I "), RefusalDelta(0, "won't."), End(0, "stop")], stream=False))
    assert (answer["content"], answer["stop_reason"]) == ([], "refusal")
    assert answer["stop_details"]["explanation"] == "I won't."


async def test_an_answer_that_calls_a_tool_ends_to_use_it():
    call = [ToolCallBegin(0, 0, "i", "f"), ToolCallDelta(0, 0, "{}"), End(0, "stop")]
    assert json.loads(await write(call, stream=False))["stop_reason"] == "tool_use"


async def test_counts_leave_out_of_the_input_what_was_cached():
    usage = Usage(input_tokens=123, output_tokens=7, cached_tokens=100, cache_write_tokens=20, reasoning_tokens=5)
    assert json.loads(await write([End(0, "stop"), usage], stream=False))["usage"] == {
        "input_tokens": 3,
        "output_tokens": 7,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 100,
        "output_tokens_details": {"thinking_tokens": 5},
    }


async def test_nothing_is_written_before_the_first_event():
    async def failing():
        raise ProviderError("no")
        yield

    out = anthropic_messages.write(
        failing(), head=Head(model="m", stream=True), answer_id="1", model="m", request=ASKED
    )
    with pytest.raises(ProviderError):
        await anext(out)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_its_end_gets_none(stream):
    with pytest.raises(ProviderError, match="before its end"):
        await write([Delta(0, "a")], stream=stream)


@pytest.mark.parametrize("arguments", ["[1]", '{"a', "nothing"])
async def test_arguments_that_are_no_object_cannot_be_written_whole(arguments):
    call = [ToolCallBegin(0, 0, "i", "f"), ToolCallDelta(0, 0, arguments), End(0, "tool_calls")]
    with pytest.raises(ProviderError, match="the tool f"):
        await write(call, stream=False)


async def test_arguments_do_not_go_on_after_their_end():
    begin = [ToolCallBegin(0, 0, "i", "f"), ToolCallDelta(0, 0, "{}"), ToolCallBegin(0, 1, "j", "f")]
    assert wire_events(await write([*begin, ToolCallDelta(0, 0, " "), End(0, "tool_calls")], stream=True))
    with pytest.raises(ProviderError, match="complete"):
        await write([*begin, ToolCallDelta(0, 0, "{}"), End(0, "tool_calls")], stream=True)


# Understanding


def test_a_stream_is_understood():
    reading = anthropic_messages.understand(STREAM)
    assert reading.texts == ["I'll check both cities.\n"]
    assert (reading.finish_reason, reading.model) == ("tool_use", "claude-sonnet-4-5-20250929")
    assert reading.usage == Usage(input_tokens=20646, output_tokens=189, cached_tokens=18123, cache_write_tokens=2051)
    assert [block["type"] for block in reading.messages[0]["content"]] == [
        "thinking", "redacted_thinking", "text", "tool_use", "tool_use",
    ]  # fmt: skip
    assert reading.messages[0]["content"][3]["input"] == {"city": "Zürich"}
    assert reading.complete


def test_a_whole_answer_is_understood():
    reading = anthropic_messages.understand(WHOLE)
    assert reading.messages == [{"role": "assistant", "content": json.loads(WHOLE)["content"]}]
    assert (reading.texts, reading.usage.reasoning_tokens) == (["Both are on their way."], 40)


def test_an_answer_of_words_alone_is_its_text():
    reading = anthropic_messages.understand(message({"type": "text", "text": "a"}, {"type": "text", "text": "b"}))
    assert (reading.texts, reading.messages) == (["ab"], [])


@given(st.integers(0, len(STREAM) - len(LAST)))
def test_a_stream_that_was_cut_is_understood_as_far_as_it_goes(cut):
    reading = anthropic_messages.understand(STREAM[:cut])
    assert "I'll check both cities.\n".startswith("".join(reading.texts))
    assert not reading.complete


def test_an_error_in_the_middle_of_a_stream_is_told():
    broken = STREAM[: STREAM.index(b"event: message_delta")] + anthropic_messages.stream_error(529, "Overloaded")
    reading = anthropic_messages.understand(broken)
    assert (reading.error, reading.complete, reading.texts) == ("Overloaded", False, ["I'll check both cities.\n"])


@pytest.mark.parametrize("size", [1, 20, 300])
async def test_the_end_mark_is_found(size):
    found = [anthropic_messages.is_last(piece) async for piece in pieces(STREAM, size)]
    assert not any(found[:-3])
    assert anthropic_messages.is_last(STREAM)
    assert anthropic_messages.is_last(b'data: {"type": "message_stop"}\n\n')


async def test_words_about_the_end_mark_are_not_it():
    words = '\nevent: message_stop\ndata: {"type":"message_stop"}'
    stream = await write([Delta(0, words), End(0, "stop")], stream=True)
    assert not anthropic_messages.is_last(stream[: stream.rindex(b"event: message_stop")])


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text() | st.sampled_from(["text", "tool_use", "error"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "input", "usage", "content", "index", "message"]), inner)
    ),
    max_leaves=8,
)
KINDS = [
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
    "message_stop", "error", "message",
]  # fmt: skip
FIELDS = ["message", "content_block", "delta", "usage", "error", "index", "content"]


EVENTS = st.builds(
    lambda kind, body: {"type": kind} | body, st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), ANY)
)


@given(st.binary() | st.lists(EVENTS, max_size=4).map(lambda events: sse(*events)))
async def test_any_stream_is_read_or_a_failure(data):
    anthropic_messages.understand(data)
    with pytest.raises(ProviderError):
        await read(data, stream=True)


@given(
    st.binary()
    | ANY.map(lambda value: json.dumps(value).encode())
    | EVENTS.map(lambda event: json.dumps(event).encode())
)
async def test_any_answer_is_read_or_a_failure(data):
    anthropic_messages.understand(data)
    with pytest.raises(ProviderError):
        await read(data, stream=False)


@given(st.binary())
def test_any_bytes_may_hold_the_end_mark(data):
    assert anthropic_messages.is_last(data) in (True, False)
