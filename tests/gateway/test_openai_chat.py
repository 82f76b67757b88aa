"""The dialect on its own: bytes in, types out."""

import json

import pytest
from dialect_tools import as_json, collect, cut, merged, pieces
from hypothesis import given, settings
from hypothesis import strategies as st

from doorstep.errors import BadInput, ProviderError
from doorstep.gateway.chat import (
    CacheMark,
    ChatRequest,
    Delta,
    End,
    File,
    Image,
    Message,
    Reasoning,
    RefusalDelta,
    SampledText,
    Text,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallBegin,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    Usage,
)
from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.dialects.base import ChatDialect, Head

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
USER = {"role": "user", "content": "hello"}


def body(*messages, **fields):
    return json.dumps({"model": "m", "messages": list(messages) or [USER]} | fields).encode()


def written(request, model="m", **head):
    return json.loads(openai_chat.write_request(request, head=Head(model=model, **head), model=model))


def asks(*blocks, role="user"):
    return ChatRequest(messages=[Message(role=role, blocks=list(blocks))])


async def read_stream(*datas, done=True):
    lines = [data if isinstance(data, bytes) else json.dumps(data).encode() for data in (*datas, *[b"[DONE]"] * done)]
    stream = b"".join(b"data: " + line + b"\n\n" for line in lines)
    return await collect(openai_chat.read_answer(pieces([stream]), stream=True))


def said(finish=None, index=0, **delta):
    return {"id": "x", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def test_it_is_a_dialect_of_chat():
    assert isinstance(openai_chat, ChatDialect)


# The head and passing through


@given(st.dictionaries(st.text(), VALUES), st.text())
def test_another_model_changes_nothing_else(fields, model):
    sent = json.dumps(fields | {"model": "openai/x"}, indent=1).encode()
    assert json.loads(openai_chat.with_model(sent, model)) == fields | {"model": model}


def test_values_keep_their_spelling():
    assert b"1.50e+01" in openai_chat.with_model(b'{"model":"a","odd":1.50e+01}', "b")


def test_a_model_that_is_named_twice_is_the_last_one_everywhere():
    sent = b'{"model":"dear","x":1,"model":"cheap"}'
    assert openai_chat.head(sent).model == "cheap"
    assert openai_chat.with_model(sent, "cheap") == b'{"model":"cheap","x":1}'


def test_the_head_says_how_much_may_come():
    assert openai_chat.head(body(max_completion_tokens=10, max_tokens=99, n=3)).most_output == 30
    assert openai_chat.head(body(max_tokens=7)).most_output == 7
    assert openai_chat.head(body(n=3)).most_output is None


@pytest.mark.parametrize(
    ("sent", "where"),
    [
        (b'{"model": 1}', "model"),
        (b"{}", "model"),
        (b'{"model":"m","stream":"yes"}', "stream"),
        (b'{"model":"m","stream_options":{"include_usage":3}}', "stream_options.include_usage"),
        (b"nonsense", "body"),
        (b'{"model":"m","temperature":NaN}', "body"),
        (b'{"model":"m","x":' + b"[" * 100_000, "body"),
        (b'{"model":"\xff"}', "body"),
    ],
)
def test_a_bad_head_names_its_field(sent, where):
    with pytest.raises(BadInput) as caught:
        openai_chat.head(sent)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("piece", "last"),
    [
        (b"data: [DONE]\n\n", True),
        (b'data: {"choices":[]}\r\n\r\ndata: [DONE]\r\n\r\n', True),
        (b'data: {"choices":[{"delta":{"content":"data: [DONE]', False),
        (b'data: {"choices":[]}\n\n', False),
    ],
)
def test_the_end_mark_is_a_line_of_its_own(piece, last):
    assert openai_chat.is_last(piece) is last


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (429, "rate_limit_error"), (502, "server_error")]
)
def test_errors_have_the_shape_of_openai(status, kind):
    error = json.loads(openai_chat.error(status, "why", param="n", code="c"))
    assert error == {"error": {"message": "why", "type": kind, "param": "n", "code": "c"}}


# Reading requests


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f", "odd": 1}}]}, "tools[0].function.odd"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"reasoning": {"effort": "low", "exclude": True}}, "reasoning.exclude"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [USER, {"role": "boss", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER | {"weight": 1}]}, "messages[0].weight"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].file"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls[0].function"),
    ],
)
def test_what_the_canonical_form_does_not_hold_is_named(fields, where):
    with pytest.raises(BadInput) as caught:
        openai_chat.read(body(**fields))
    assert caught.value.where == where


def test_a_field_that_comes_twice_is_refused():
    with pytest.raises(BadInput, match="role: this field comes twice"):
        openai_chat.read(b'{"model":"m","messages":[{"role":"user","role":"system","content":"x"}]}')


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({"reasoning_effort": "high"}, Reasoning(effort="high")),
        ({"reasoning_effort": "none"}, Reasoning(off=True)),
        ({"thinking": {"type": "disabled"}}, Reasoning(off=True)),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, Reasoning(budget=2000)),
        ({"reasoning": {"enabled": False}}, Reasoning(off=True)),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, Reasoning(effort="low", summary="auto")),
    ],
)
def test_reasoning_is_understood_in_its_spellings(fields, reasoning):
    assert openai_chat.read(body(**fields)).reasoning == reasoning


def filed(**given):
    [message] = openai_chat.read(body({"role": "user", "content": [{"type": "file", "file": given}]})).messages
    return message.blocks[0]


def test_a_file_is_data_an_address_or_an_id():
    assert filed(file_data="https://a.example/x.pdf") == File(url="https://a.example/x.pdf")
    assert filed(file_data="JVBERi0=", filename="x.pdf") == File(data="JVBERi0=", name="x.pdf")
    assert filed(file_data="data:text/csv;base64,YTti") == File(data="YTti", media_type="text/csv")
    with pytest.raises(BadInput, match="UTF-8"):
        filed(file_data="data:text/plain;base64,//8=")


def test_cache_marks_of_tools_are_read():
    tool = {"type": "function", "function": {"name": "f"}, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert openai_chat.read(body(tools=[tool])).tools == [Tool(name="f", cache=CacheMark("1h"))]


def test_the_record_has_what_was_asked():
    sent = body(USER, temperature=0, seed=None, tools=[], user="u", reasoning_effort="low")
    assert openai_chat.messages(sent) == [USER]
    assert openai_chat.sampling(sent) == {"temperature": 0, "reasoning_effort": "low"}
    assert openai_chat.messages(b'{"messages":"odd"}') == []


# Writing requests


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("gpt-4.1", "max_tokens"),
        ("gpt-oss-120b", "max_tokens"),
        ("gpt-5.2", "max_completion_tokens"),
        ("openai/o3", "max_completion_tokens"),
    ],
)
def test_the_limit_has_the_name_that_the_model_takes(model, field):
    assert written(ChatRequest(messages=[], max_tokens=5), model)[field] == 5


@pytest.mark.parametrize(("model", "role"), [("gpt-5.2", "developer"), ("glm-4.6", "system")])
def test_a_developer_speaks_in_a_role_that_the_model_knows(model, role):
    assert written(asks(Text(text="x"), role="developer"), model)["messages"][0]["role"] == role


def test_settings_of_tools_come_with_tools_only():
    unused = ChatRequest(messages=[], tool_choice=ToolChoice(mode="auto"), parallel_tool_calls=True)
    assert written(unused).keys() == {"model", "messages"}
    assert written(ChatRequest(messages=[], tool_choice=ToolChoice(mode="required")))["tool_choice"] == "required"


def test_a_stream_is_asked_to_end_with_its_usage():
    assert written(asks(Text(text="x")), stream=True, usage=False)["stream_options"] == {"include_usage": True}


def test_a_tool_that_failed_says_so_in_its_words():
    failed = ToolResult(call_id="c", content=[Text(text="no such city")], is_error=True)
    [message] = written(asks(failed, role="tool"))["messages"]
    assert message == {"role": "tool", "tool_call_id": "c", "content": "Error: no such city"}


@pytest.mark.parametrize(("budget", "effort"), [(1024, "low"), (10_000, "medium"), (32_000, "high")])
def test_a_budget_of_thinking_is_an_effort(budget, effort):
    assert written(ChatRequest(messages=[], reasoning=Reasoning(budget=budget)))["reasoning_effort"] == effort


@pytest.mark.parametrize(
    ("role", "block"),
    [("user", Image(file_id="f")), ("assistant", Image(url="u")), ("system", File(text="x"))],
)
def test_a_block_that_chat_cannot_say_is_refused(role, block):
    with pytest.raises(BadInput, match="OpenAI chat takes no"):
        written(asks(block, role=role))


TEXTS = st.text(min_size=1, max_size=8)
ASSISTANT = st.builds(
    lambda text, calls: Message(role="assistant", blocks=[Text(text=text), *calls]),
    TEXTS,
    st.lists(st.builds(ToolCall, id=TEXTS, name=TEXTS, arguments=TEXTS), max_size=2),
)
RESULTS = st.builds(
    lambda results: Message(role="tool", blocks=results),
    st.lists(
        st.builds(ToolResult, call_id=TEXTS, content=st.lists(st.builds(Text, text=TEXTS), min_size=1, max_size=2)),
        min_size=1,
        max_size=3,
    ),
)
WORDS = st.builds(
    lambda role, texts, name: Message(role=role, blocks=[Text(text=text) for text in texts], name=name),
    st.sampled_from(["system", "developer", "user"]),
    st.lists(TEXTS, min_size=1, max_size=2),
    st.none() | TEXTS,
)


@given(st.lists(st.tuples(WORDS, ASSISTANT, RESULTS), min_size=1, max_size=3))
def test_what_is_written_reads_the_same(turns):
    request = ChatRequest(messages=[message for turn in turns for message in turn], max_tokens=9, stop=["x"])
    sent = openai_chat.write_request(request, head=Head(model="m"), model="gpt-5")
    assert openai_chat.read(sent) == request


# Answers

CALL = ToolCallBegin(0, 0, "c1", "f")
ANSWER = [
    ThinkingDelta(0, "Hm. "),
    ThinkingDelta(0, "Two.", signature="s"),
    ThinkingDelta(0, redacted="r", id="rs"),
    Delta(0, "Grüße 🐈", [SampledText("Grüße", b"x", -1.0, [SampledText("Hallo", b"y", -2.0)])]),
    CALL,
    ToolCallDelta(0, 0, '{"a":'),
    ToolCallBegin(0, 1, "c2", "g"),
    ToolCallDelta(0, 1, "{}"),
    ToolCallDelta(0, 0, "1}"),
    End(0, "tool_calls"),
    Delta(1, "zwei", [SampledText("zwei", b"zwei", -0.5)]),
    End(1, "stop", "END"),
    RefusalDelta(2, "no"),
    End(2, "refusal"),
    Usage(
        input_tokens=9,
        output_tokens=5,
        cached_tokens=4,
        cache_write_tokens=1,
        reasoning_tokens=2,
        input_audio_tokens=0,
        output_audio_tokens=0,
    ),
]
THREE = ChatRequest(messages=[], n=3, logprobs=True)


async def answer_bytes(events, request=THREE, **head):
    answer = openai_chat.write(pieces(events), head=Head(model="m", **head), answer_id="a", model="m", request=request)
    return b"".join(await collect(answer))


@given(st.lists(st.integers(0, 10_000), max_size=12))
@settings(max_examples=50)
async def test_a_stream_is_the_same_however_it_is_cut(places):
    sent = await answer_bytes(ANSWER, stream=True)
    events = await collect(openai_chat.read_answer(pieces(cut(sent, places)), stream=True))
    assert merged(events) == merged(ANSWER)


async def test_a_stream_comes_byte_by_byte():
    sent = await answer_bytes(ANSWER, stream=True)
    events = await collect(openai_chat.read_answer(pieces([bytes([byte]) for byte in sent]), stream=True))
    assert merged(events) == merged(ANSWER)


async def test_a_whole_answer_reads_as_it_was_written():
    events = await collect(openai_chat.read_answer(pieces([await answer_bytes(ANSWER)]), stream=False))
    ordered = [*ANSWER[:4], CALL, ToolCallDelta(0, 0, '{"a":1}'), *ANSWER[6:8], *ANSWER[9:]]
    assert merged(events) == merged(ordered)


async def test_usage_comes_only_where_it_is_asked_for():
    asked = await answer_bytes(ANSWER, stream=True)
    assert b'"usage":null' in asked
    assert b"usage" not in await answer_bytes(ANSWER, stream=True, usage=False)


async def test_counts_that_are_not_known_are_not_zero():
    sent = await answer_bytes([Delta(0, "x"), End(0, "stop"), Usage(output_tokens=3)], ChatRequest(messages=[]))
    assert "usage" not in json.loads(sent)


async def test_a_provider_may_end_without_done():
    assert await read_stream(said(content="x"), said("stop"), done=False)


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [said(content="x")],
        [said("stop"), said(index=1, content="x")],
        [said("error", content="x")],
        [b'{"choices": 3}'],
        [b"{"],
        [b"[" * 100_000],
        [said("stop", content="x") | {"error": {"message": "late"}}],
        [said("stop", audio={"data": "UklG"})],
        [said(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}])],
    ],
)
async def test_an_answer_that_is_not_whole_is_no_answer(chunks):
    with pytest.raises(ProviderError):
        await read_stream(*chunks)


@pytest.mark.parametrize(
    ("chunk", "status", "retryable"),
    [
        ({"error": {"message": "slow down", "code": 429}}, 429, True),
        ({"error": {"message": "slow down", "type": "rate_limit_error", "code": None}}, 429, True),
        ({"error": {"message": "slow down", "code": "400", "type": "BadRequestError"}}, 400, False),
        ({"object": "error", "message": "slow down", "code": 503}, 503, True),
        ({"error": "slow down"}, 502, True),
    ],
)
async def test_an_error_in_a_stream_is_the_providers(chunk, status, retryable):
    with pytest.raises(ProviderError, match="slow down") as caught:
        await read_stream(said(content="x"), chunk)
    assert (caught.value.status, caught.value.retryable) == (status, retryable)


async def test_what_is_said_of_an_error_is_read_as_one():
    with pytest.raises(ProviderError, match="gone") as caught:
        await collect(openai_chat.read_answer(pieces([openai_chat.stream_error(503, "gone")]), stream=True))
    assert caught.value.status == 502  # the event has no number


# Understanding what has passed

CHUNKS = [
    {"id": "c", "model": "m-1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "grüß "}}]},
    said(content="dich"),
    said(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]),
    said(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}]),
    said(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
    said("tool_calls"),
    {
        "choices": [],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    },
]
STREAM = b"".join(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n" for chunk in CHUNKS)


def test_a_finished_stream_is_understood():
    reading = openai_chat.understand(STREAM + b"data: [DONE]\n\n")
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert reading.messages == [{"role": "assistant", "content": "grüß dich", "tool_calls": [call]}]
    assert (reading.texts, reading.finish_reason, reading.model) == (["grüß dich"], "tool_calls", "m-1")
    assert reading.usage == Usage(input_tokens=3, output_tokens=2, cached_tokens=1, reasoning_tokens=1)
    assert reading.complete


@given(st.integers(0, len(STREAM)))
def test_a_stream_that_was_cut_is_read_as_far_as_it_goes(at):
    reading = openai_chat.understand(STREAM[:at])
    assert "".join(reading.texts) in ("", "grüß ", "grüß dich")
    assert reading.complete == (reading.finish_reason == "tool_calls")


def test_an_error_after_the_first_words_is_kept():
    stream = STREAM[: STREAM.index(b"\n\n") + 2] + openai_chat.stream_error(529, "overloaded") + b"data: [DONE]\n\n"
    reading = openai_chat.understand(stream)
    assert (reading.texts, reading.error, reading.complete) == (["grüß "], "overloaded", False)


def test_plain_text_needs_no_message():
    message = {"role": "assistant", "content": "hi", "refusal": None, "annotations": []}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    assert openai_chat.understand(json.dumps(whole).encode()).messages == []


@pytest.mark.parametrize("answer", [b"", b"<html>", b'{"choices": 3}', b"data: {", b"\xff{", b"{" + b"[" * 100_000])
def test_an_answer_of_another_kind_stays_unknown(answer):
    reading = openai_chat.understand(answer)
    assert (reading.texts, reading.finish_reason, reading.usage.output_tokens) == ([], None, None)
    assert not reading.complete


# Anything at all

JSON = VALUES.map(lambda value: json.dumps(value).encode())
CHAT = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(st.dictionaries(st.sampled_from(
        ["role", "content", "tool_calls", "tool_call_id", "refusal", "reasoning_details", "name"]
    ), VALUES | st.sampled_from(["user", "assistant", "tool"]))) | VALUES},
    optional=dict.fromkeys(("tools", "tool_choice", "response_format", "stop", "n", "thinking"), VALUES),
).map(lambda value: json.dumps(value).encode())  # fmt: skip
CHUNK = st.fixed_dictionaries(
    {},
    optional={"choices": st.lists(st.fixed_dictionaries({}, optional={
        name: VALUES | st.dictionaries(st.sampled_from(["content", "tool_calls", "reasoning", "images"]), VALUES)
        for name in ("index", "delta", "message", "logprobs", "finish_reason")
    })), "usage": VALUES, "error": VALUES, "id": VALUES},
).map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n")  # fmt: skip


@given(st.binary() | JSON | CHAT)
@settings(max_examples=300)
def test_any_request_is_read_or_refused(sent):
    for read in (openai_chat.head, openai_chat.read):
        try:
            read(sent)
        except BadInput as error:
            assert error.where  # noqa: PT017


@given(st.binary() | JSON | st.lists(CHUNK | st.binary()).map(b"".join))
@settings(max_examples=300)
async def test_any_answer_is_read_or_refused(sent):
    assert isinstance(openai_chat.understand(sent).texts, list)
    for stream in (True, False):
        try:
            events = await collect(openai_chat.read_answer(pieces([sent]), stream=stream))
        except ProviderError as error:
            assert error.status >= 400  # noqa: PT017
        else:
            assert as_json(events)[-1]["event"] == "Usage"
