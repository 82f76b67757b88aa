"""The fake provider: valid answers in every dialect, and faults as told."""

import asyncio
import base64
import json
import struct
import wave
import zlib
from io import BytesIO

import pytest

from doorstep.errors import BadInput, NotFound, ProviderError
from doorstep.gateway.dialects import (
    anthropic_count,
    anthropic_messages,
    gemini,
    hume,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_images,
    openai_responses,
    openai_speech,
    openai_transcription,
)
from doorstep.gateway.providers.base import Ask, pieces_of
from doorstep.gateway.providers.fake import FakeProvider, Script
from doorstep.gateway.providers.fake_values import example

CHATS = {dialect.NAME: dialect for dialect in (openai_chat, openai_responses, anthropic_messages)}
CHAT = openai_chat
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    for name in ("weather", "time")
]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "who": {"enum": ["Ann", "Bo"]}}}


def chat_body(**fields):
    return {"model": "m", "messages": [{"role": "user", "content": "one two three"}]} | fields


def ask_of(dialect, body, model="echo", form=b""):
    raw = form or json.dumps(body).encode()
    return Ask(dialect=dialect, head=dialect.head(raw), body=raw, call_id="call_00000001", model=model)


@pytest.fixture
def fake():
    return FakeProvider("fake")


async def said(answer):
    return b"".join([piece async for piece in pieces_of(answer.body)])


async def chat(fake, model="echo", **fields):
    """Have a chat; return what its dialect understands of the answer, and the answer."""
    answer = await fake.answer(ask_of(CHAT, chat_body(**fields), model))
    body = await said(answer)
    return CHAT.understand(body), body


# What it says


ASKED = {
    "openai.chat": chat_body(stream_options={"include_usage": True}),
    "openai.responses": {"model": "m", "input": "one two three"},
    "anthropic.messages": chat_body(max_tokens=100),
}


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("stream", [False, True])
async def test_it_chats_in_every_dialect(fake, name, stream):
    answer = await fake.answer(ask_of(CHATS[name], ASKED[name] | {"stream": stream}))
    reading = CHATS[name].understand(await said(answer))
    assert (reading.texts, reading.complete) == (["one two three"], True)
    assert (reading.usage.input_tokens, reading.usage.output_tokens) == (3, 3)
    assert answer.content_type == ("text/event-stream" if stream else "application/json")


async def test_an_answer_ends_at_the_tokens_it_may_have(fake):
    reading, _ = await chat(fake, max_tokens=2)
    assert (reading.texts, reading.finish_reason) == (["one two"], "length")


async def test_it_answers_as_often_as_it_is_asked_to(fake):
    reading, _ = await chat(fake, n=3)
    assert reading.texts == ["one two three"] * 3


@pytest.mark.parametrize(
    ("fields", "called"),
    [
        ({}, ["weather", "time"]),
        ({"parallel_tool_calls": False}, ["weather"]),
        ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, ["time"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_it_calls_tools_with_arguments_that_fit(fake, fields, called, stream):
    reading, _ = await chat(fake, "tools", tools=TOOLS, stream=stream, **fields)
    calls = [call["function"] for call in reading.messages[0]["tool_calls"]]
    assert [call["name"] for call in calls] == called
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "text"}] * len(called)
    assert reading.finish_reason == "tool_calls"


async def test_it_answers_after_a_tool_has(fake):
    _, first = await chat(fake, "tools", tools=TOOLS)
    message = json.loads(first)["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in message["tool_calls"]]
    reading, _ = await chat(fake, "tools", tools=TOOLS, messages=[{"role": "user", "content": "?"}, message, *results])
    assert (reading.texts, reading.finish_reason) == (["sunny sunny"], "stop")


async def test_it_answers_in_json_that_fits(fake):
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    reading, _ = await chat(fake, "json", response_format=wanted)
    assert json.loads(reading.texts[0]) == {"n": 1, "who": "Ann"}


async def test_its_thinking_is_signed(fake):
    dialect = CHATS["anthropic.messages"]
    answer = await fake.answer(ask_of(dialect, chat_body(max_tokens=9), "thinking"))
    [thinking, text] = json.loads(await said(answer))["content"]
    assert (thinking["type"], thinking["thinking"], text["text"]) == ("thinking", "Let me think.", "one two three")
    assert thinking["signature"]


async def test_it_refuses(fake):
    _, body = await chat(fake, "refusal")
    assert json.loads(body)["choices"][0]["message"]["refusal"] == "I cannot help with that."


async def test_it_has_no_log_probabilities(fake):
    with pytest.raises(BadInput, match="logprobs"):
        await chat(fake, logprobs=True)


async def test_an_unknown_model_says_what_there_is(fake):
    with pytest.raises(NotFound, match="echo"):
        await chat(fake, "gpt-5")


# What is no chat


def form(**fields):
    parts = [f'--b\r\ncontent-disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    file = '--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
    return ("".join(parts) + file + "--b--\r\n").encode()


async def test_embeddings_are_numbers_or_their_bytes(fake):
    dialect = openai_embeddings
    numbers, packed = [
        json.loads(await said(await fake.answer(ask_of(dialect, {"model": "m", "input": ["a", "b c"]} | more))))
        for more in ({"dimensions": 3}, {"dimensions": 3, "encoding_format": "base64"})
    ]
    assert [len(item["embedding"]) for item in numbers["data"]] == [3, 3]
    assert len(base64.b64decode(packed["data"][1]["embedding"])) == 12
    assert numbers["usage"]["prompt_tokens"] == 3


def chunks_of(png):
    """Return the chunks of a PNG whose checksums are right."""
    place, chunks = 8, {}
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        data = png[place + 8 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length :][:4]) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        place += 12 + length
    return chunks


async def test_pictures_are_real(fake):
    body = {"model": "m", "prompt": "a cat", "n": 2}
    answer = json.loads(await said(await fake.answer(ask_of(openai_images, body))))
    pictures = [base64.b64decode(item["b64_json"]) for item in answer["data"]]
    assert all(picture.startswith(b"\x89PNG\r\n\x1a\n") for picture in pictures)
    assert {len(zlib.decompress(chunks_of(picture)[b"IDAT"])) for picture in pictures} == {8 * (1 + 8 * 3)}
    assert pictures[0] != pictures[1]


async def test_sound_is_real(fake):
    answer = await fake.answer(ask_of(openai_speech, {"model": "m", "input": "hello", "voice": "v"}))
    with wave.open(BytesIO(await said(answer))) as sound:
        assert sound.getnframes() / sound.getframerate() == 0.1
    assert answer.content_type == "audio/wav"


NOT_CHAT = [
    (openai_images, {"model": "m", "prompt": "p", "stream": True}),
    (openai_speech, {"model": "m", "input": "hello", "stream_format": "sse"}),
    (hume.TTS, {"utterances": [{"text": "hello"}]}),
    (hume.TTS_STREAM_JSON, {"utterances": [{"text": "hello"}]}),
    (gemini.GenerateContent("m"), {"contents": [{"parts": [{"text": "p"}]}]}),
    (gemini.GenerateContent("m", gemini.STREAM, "alt=sse"), {"contents": [{"parts": [{"text": "p"}]}]}),
    (gemini.GenerateContent("m", gemini.STREAM), {"contents": [{"parts": [{"text": "p"}]}]}),
    (openai_embeddings, {"model": "m", "input": "hello"}),
    (openai_completions, {"model": "m", "prompt": "hello"}),
    (openai_completions, {"model": "m", "prompt": "hello", "stream": True}),
    (anthropic_count, {"model": "m", "messages": [{"role": "user", "content": "hello"}]}),
]


@pytest.mark.parametrize(("dialect", "body"), NOT_CHAT)
async def test_what_is_no_chat_is_whole_too(fake, dialect, body):
    reading = dialect.understand(await said(await fake.answer(ask_of(dialect, body))))
    assert (reading.complete, reading.error) == (True, None)


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_it_hears_something(fake, stream):
    dialect = openai_transcription
    answer = await fake.answer(ask_of(dialect, None, form=form(model="m", stream=stream)))
    assert dialect.understand(await said(answer)).texts == ["what the fake provider heard"]


# Faults


async def test_a_busy_model_says_when_to_come_again(fake):
    answer = await fake.answer(ask_of(CHAT, chat_body(), "busy"))
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert "as told" in json.loads(await said(answer))["error"]["message"]


async def test_a_flaky_model_answers_in_the_end(fake):
    answers = [(await fake.answer(ask_of(CHAT, chat_body(), "flaky"))).status for _ in range(6)]
    assert answers == [503, 503, 200, 503, 503, 200]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_answer_breaks_off(fake, stream):
    with pytest.raises(ProviderError, match="breaks off"):
        await chat(fake, "broken", stream=stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_answer_is_empty(fake, stream):
    assert (await chat(fake, "empty", stream=stream))[1] == b""


@pytest.mark.parametrize("name", CHATS)
async def test_an_error_comes_in_the_middle_of_a_stream(fake, name):
    answer = await fake.answer(ask_of(CHATS[name], ASKED[name] | {"stream": True}, "error-after-200"))
    reading = CHATS[name].understand(await said(answer))
    assert (answer.status, reading.complete) == (200, False)
    assert "as told" in reading.error


@pytest.mark.parametrize("stream", [False, True])
async def test_a_malformed_answer_is_not_whole(fake, stream):
    reading, _ = await chat(fake, "malformed", stream=stream)
    assert not reading.complete


async def test_a_silent_model_never_begins(fake):
    stream = (await fake.answer(ask_of(CHAT, chat_body(stream=True), "silent"))).body
    waiting = asyncio.ensure_future(stream.next())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await stream.close()
    assert fake.cancelled == 1


async def test_a_drip_is_byte_by_byte(fake):
    answer = await fake.answer(ask_of(CHAT, chat_body(stream=True), "drip"))
    assert {len(await answer.body.next()) for _ in range(20)} == {1}
    await answer.body.close()


async def test_a_huge_answer_is_huge(fake):
    _, body = await chat(fake, "huge", stream=True)
    assert len(body) > 2_000_000


async def test_a_test_gives_its_own_scripts():
    reading, _ = await chat(FakeProvider("own", {"hi": Script(text="hi there")}), "hi")
    assert reading.texts == ["hi there"]


# Values for schemas


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "format": "date"}, "2026-01-31"),
        ({"type": ["integer", "null"], "minimum": 5}, 5),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, True),
        ({"type": "array", "items": {"const": 7}, "minItems": 2}, [7, 7]),
        ({"$defs": {"a": {"type": "null"}}, "properties": {"x": {"$ref": "#/$defs/a"}}}, {"x": None}),
        ({"allOf": [{"type": "object"}, {"properties": {"y": {"default": 3}}}]}, {"y": 3}),
        ({}, "text"),
    ],
)
def test_values_fit_their_schemas(schema, value):
    assert example(schema) == value


def test_a_schema_that_refers_to_itself_has_a_value():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert example(schema)["next"]["next"]["next"]
