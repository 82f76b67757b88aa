"""Services that the any-llm library speaks to: the library itself, on real servers of the test's own."""

import asyncio
import json
import struct
import subprocess
import sys
import zlib
from contextlib import asynccontextmanager

import msgspec
import openai
import pytest
from any_llm.constants import LLMProvider
from gateway_parts import serving, settings_for, wait_for
from pages import ROOT, blocks
from raw_upstream import LAST_CHUNK, chunk, chunked, upstream_that, whole

from doorstep.config import KNOWN_PROVIDERS, ProviderSettings, TrafficSettings, load
from doorstep.errors import BadInput, ProviderError, UsageError
from doorstep.gateway.dialects import anthropic_messages, openai_chat, openai_embeddings, openai_responses
from doorstep.gateway.providers.any_llm import any_llm_provider
from doorstep.gateway.providers.base import Ask, Key
from doorstep.store import Store
from doorstep.types import Call

KEYS = {"ONE": "sk-one", "TWO": "sk-two"}
OPENAI = {"provider": "openai"}
JSON, EVENTS = "Content-Type: application/json", "Content-Type: text/event-stream"
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
DONE = b"data: [DONE]\n\n"
LENGTHS = {
    anthropic_messages: "max_tokens",
    openai_chat: "max_completion_tokens",
    openai_responses: "max_output_tokens",
}


def an_ask(dialect=anthropic_messages, **fields):
    said = {"input": HELLO} if dialect is openai_responses else {"messages": HELLO}
    body = json.dumps({"model": "p/m", LENGTHS[dialect]: 9} | said | fields).encode()
    return Ask(dialect=dialect, head=dialect.head(body), body=body, call_id="call_1", model="m")


def whole_answer(message, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    fields = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m-1", "choices": [choice]}
    return whole(json.dumps(fields | {"usage": usage}).encode(), JSON)


def piece(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    fields = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": [choice]}
    return chunk(b"data: " + json.dumps(fields).encode() + b"\n\n")


BEGINNING = chunked(EVENTS) + piece({"role": "assistant", "content": "hi "})
END = piece({}, "stop") + chunk(DONE) + LAST_CHUNK


@asynccontextmanager
async def asking(say, options=OPENAI, **settings):
    """Give a service that answers by ``say``, and the provider that asks it."""
    async with upstream_that(say) as upstream:
        settings = {
            "kind": "any-llm",
            "base_url": f"{upstream.url}/v1",
            "options": options,
            "key_env": "ONE",
        } | settings
        provider = any_llm_provider("p", ProviderSettings(**settings), KEYS)
        try:
            yield upstream, provider
        finally:
            await provider.close()


async def answered(say, ask, **settings):
    """Return the body of an answer and the request that the service got."""
    async with asking(say, **settings) as (upstream, provider):
        answer = await provider.answer(ask)
        body = answer.body if isinstance(answer.body, bytes) else await all_of(answer.body)
    return body, upstream.requests[0]


async def all_of(stream):
    pieces = []
    while got := await stream.next():
        pieces.append(got)
    return b"".join(pieces)


def says(*pieces):
    async def say(caller):
        caller.send(*pieces)

    return say


def sent(request):
    return json.loads(request.partition(b"\r\n\r\n")[2])


# Answers


@pytest.mark.parametrize("dialect", LENGTHS, ids=lambda dialect: dialect.NAME)
async def test_every_dialect_of_chat_is_answered(dialect):
    body, request = await answered(says(whole_answer({"content": "hi there"})), an_ask(dialect))
    reading = dialect.understand(body)
    assert reading.texts == ["hi there"]
    assert (reading.usage.input_tokens, reading.usage.output_tokens) == (3, 2)
    assert (sent(request)["model"], sent(request)["messages"]) == ("m", HELLO)


@pytest.mark.parametrize("dialect", LENGTHS, ids=lambda dialect: dialect.NAME)
async def test_every_dialect_of_chat_is_streamed(dialect):
    say = says(BEGINNING, piece({"content": "there"}), END)
    body, request = await answered(say, an_ask(dialect, stream=True))
    reading = dialect.understand(body)
    assert (reading.texts, reading.complete) == (["hi there"], True)
    assert sent(request)["stream_options"] == {"include_usage": True}


TOOL = {"name": "weather", "description": "The weather", "input_schema": SCHEMA}
FUNCTION = {"name": "weather", "arguments": '{"city":"Bonn"}'}


async def test_tools_go_and_their_calls_come_back():
    calls = [{"id": "call_7", "type": "function", "function": FUNCTION}]
    say = says(whole_answer({"content": None, "tool_calls": calls}, "tool_calls"))
    body, request = await answered(say, an_ask(tools=[TOOL]))
    (block,) = json.loads(body)["content"]
    assert (block["id"], block["name"], block["input"]) == ("call_7", "weather", {"city": "Bonn"})
    assert sent(request)["tools"][0]["function"]["parameters"] == SCHEMA


async def test_a_call_of_a_tool_is_streamed():
    begins = {"index": 0, "id": "call_7", "type": "function", "function": {"name": "weather", "arguments": ""}}
    goes_on = {"index": 0, "function": {"arguments": '{"city":"Bonn"}'}}
    pieces = [piece({"tool_calls": [part]}) for part in (begins, goes_on)]
    say = says(BEGINNING, *pieces, piece({}, "tool_calls"), chunk(DONE), LAST_CHUNK)
    body, _ = await answered(say, an_ask(openai_chat, stream=True))
    (message,) = openai_chat.understand(body).messages
    assert message["tool_calls"] == [{"id": "call_7", "type": "function", "function": FUNCTION}]


async def test_a_json_schema_goes_as_it_is():
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    _, request = await answered(says(whole_answer({"content": "{}"})), an_ask(openai_chat, response_format=form))
    assert sent(request)["response_format"] == form


async def test_the_usage_of_a_stream_is_known_also_where_the_client_did_not_ask_for_it():
    usage = b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    usage += b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    say = says(BEGINNING, piece({}, "stop"), chunk(usage + DONE), LAST_CHUNK)
    async with asking(say) as (_, provider):
        answer = await provider.answer(an_ask(openai_chat, stream=True))
        body = await all_of(answer.body)
    assert b"usage" not in body
    assert (answer.seen.usage.input_tokens, answer.seen.usage.output_tokens) == (3, 2)


async def test_a_service_with_an_api_of_its_own_is_spoken_to_in_that():
    answer = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hi there"}], "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }  # fmt: skip
    say = says(whole(json.dumps(answer).encode(), JSON))
    options = {"provider": "anthropic"}
    body, request = await answered(say, an_ask(openai_chat), options=options)
    assert request.startswith(b"POST /v1/v1/messages ")
    assert openai_chat.understand(body).texts == ["hi there"]


# Bedrock, by Amazon's own package

AWS = {"provider": "bedrock", "region_name": "eu-west-1"}


@pytest.fixture
def aws(monkeypatch):
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)


async def test_bedrock_is_asked_in_its_own_way_with_the_keys_of_aws(aws):
    said = {"message": {"role": "assistant", "content": [{"text": "hi there"}]}}
    fields = {"output": said, "stopReason": "end_turn", "metrics": {"latencyMs": 1}}
    usage = {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}
    say = says(whole(json.dumps(fields | {"usage": usage}).encode(), JSON))
    body, request = await answered(say, an_ask(), options=AWS, key_env=None)
    assert anthropic_messages.understand(body).texts == ["hi there"]
    assert request.startswith(b"POST /v1/model/m/converse ")
    assert sent(request)["messages"] == [{"role": "user", "content": [{"text": "hello"}]}]
    assert b"Credential=a/" in request


def event(kind, body):
    """Return an event of a stream as Amazon frames it."""
    given = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    heads = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in given.items()
    )
    said = json.dumps(body).encode()
    lengths = struct.pack(">II", 16 + len(heads) + len(said), len(heads))
    message = lengths + struct.pack(">I", zlib.crc32(lengths)) + heads + said
    return chunk(message + struct.pack(">I", zlib.crc32(message)))


BEDROCK_BEGINNING = (
    chunked("Content-Type: application/vnd.amazon.eventstream")
    + event("messageStart", {"role": "assistant"})
    + event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "hi there"}})
)
BEDROCK_END = event("messageStop", {"stopReason": "end_turn"}) + event(
    "metadata", {"usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}, "metrics": {"latencyMs": 1}}
)


async def test_bedrock_streams(aws):
    say = says(BEDROCK_BEGINNING, BEDROCK_END, LAST_CHUNK)
    body, request = await answered(say, an_ask(stream=True), options=AWS, key_env=None)
    reading = anthropic_messages.understand(body)
    assert (reading.texts, reading.complete, reading.usage.output_tokens) == (["hi there"], True, 2)
    assert request.startswith(b"POST /v1/model/m/converse-stream ")


async def test_streams_of_bedrock_that_are_silent_stop_nobody_else(aws):
    async def say(caller):
        caller.send(BEDROCK_BEGINNING)
        await caller.silence()

    async with asking(say, options=AWS, key_env=None, idle_s=0.3) as (_, provider):
        answers = [await provider.answer(an_ask(stream=True)) for _ in range(8)]
        ended = await asyncio.gather(*(all_of(answer.body) for answer in answers), return_exceptions=True)
        for answer in answers:
            await answer.body.close()
    assert [str(error) for error in ended] == ["p sent nothing for 0.3 s"] * 8


async def test_a_stream_of_bedrock_that_is_given_up_ends_the_call(aws):
    async def say(caller):
        caller.send(BEDROCK_BEGINNING)
        await caller.silence()

    async with asking(say, options=AWS, key_env=None) as (upstream, provider):
        answer = await provider.answer(an_ask(stream=True))
        await answer.body.next()
        await answer.body.close()
        await asyncio.wait_for(upstream.callers[0].gone.wait(), 5)


@pytest.mark.parametrize(("status", "kind"), [(429, "ThrottlingException"), (503, "ServiceUnavailableException")])
async def test_a_refusal_of_bedrock_keeps_its_status(aws, status, kind):
    say = says(whole(b'{"message": "not today"}', JSON, f"x-amzn-ErrorType: {kind}", status=f"{status} So"))
    with pytest.raises(ProviderError, match="not today") as failed:
        await answered(say, an_ask(), options=AWS, key_env=None)
    assert failed.value.status == status


async def test_a_field_that_bedrock_does_not_have_is_the_callers_mistake(aws):
    with pytest.raises(ProviderError, match="top_k") as failed:
        await answered(says(), an_ask(top_k=4), options=AWS, key_env=None)
    assert failed.value.status == 400


# Failures


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500, 503, 529])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_service_refuses_keeps_its_status_and_its_words(status, stream):
    say = says(whole(b'{"error": {"message": "not today"}}', JSON, status=f"{status} So"))
    with pytest.raises(ProviderError, match="not today") as failed:
        await answered(say, an_ask(stream=stream))
    assert failed.value.status == status


async def test_a_refusal_does_not_tell_the_key_that_the_service_repeats():
    say = says(whole(b'{"error": {"message": "sk-one is not known"}}', JSON, status="401 So"))
    with pytest.raises(ProviderError, match=r"\*\*\* is not known") as failed:
        await answered(say, an_ask())
    assert "sk-one" not in str(failed.value)


async def test_a_service_says_when_to_come_back():
    say = says(whole(b"{}", JSON, "Retry-After: 7", status="429 So"))
    with pytest.raises(ProviderError) as failed:
        await answered(say, an_ask())
    assert failed.value.retry_after_s == 7


async def test_a_service_that_closes_without_an_answer_is_a_bad_gateway():
    async def say(caller):
        caller.close()

    with pytest.raises(ProviderError) as failed:
        await answered(say, an_ask())
    assert failed.value.status == 502


@pytest.mark.parametrize("last", [b"", LAST_CHUNK, chunk(DONE) + LAST_CHUNK])
async def test_a_stream_without_its_end_is_no_whole_answer(last):
    async def say(caller):
        caller.send(BEGINNING, last)
        caller.close()

    with pytest.raises(ProviderError):
        await answered(say, an_ask(stream=True))


async def test_an_error_in_a_stream_breaks_it_off():
    say = says(BEGINNING, chunk(b'data: {"error": {"message": "no more"}}\n\n'), LAST_CHUNK)
    with pytest.raises(ProviderError, match="no more"):
        await answered(say, an_ask(stream=True))


@pytest.mark.parametrize(("clock", "said"), [("first_byte_s", "did not begin"), ("total_s", "took longer")])
async def test_a_silent_service_is_not_waited_for(clock, said):
    with pytest.raises(ProviderError, match=said) as failed:
        await answered(lambda caller: caller.silence(), an_ask(), **{clock: 0.5})
    assert failed.value.status == 504


async def test_a_stream_that_falls_silent_is_not_waited_for():
    async def say(caller):
        caller.send(BEGINNING)
        await caller.silence()

    with pytest.raises(ProviderError, match="sent nothing") as failed:
        await answered(say, an_ask(stream=True), idle_s=0.2)
    assert failed.value.status == 504


@pytest.mark.parametrize("begun", [False, True])
async def test_a_stream_that_is_given_up_ends_the_call(begun):
    async def say(caller):
        caller.send(BEGINNING)
        await caller.silence()

    async with asking(say) as (upstream, provider):
        answer = await provider.answer(an_ask(stream=True))
        if begun:
            await answer.body.next()
        await answer.body.close()
        await asyncio.wait_for(upstream.callers[0].gone.wait(), 5)
        assert await answer.body.next() == b""


async def test_a_call_that_is_given_up_before_its_answer_ends():
    async with asking(lambda caller: caller.silence()) as (upstream, provider):
        call = asyncio.create_task(provider.answer(an_ask()))
        while not upstream.requests:  # noqa: ASYNC110 - set by the server of this loop
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait_for(upstream.callers[0].gone.wait(), 5)


# What is asked of it


async def refused(ask, **settings):
    with pytest.raises(BadInput) as failed:
        await answered(says(whole_answer({"content": "hi"})), ask, **settings)
    return failed.value


async def test_a_field_that_only_openai_knows_is_named():
    assert (await refused(an_ask(openai_chat, web_search_options={}))).where == "web_search_options"


async def test_a_field_that_the_service_does_not_take_is_named():
    ask = an_ask(openai_chat, response_format={"type": "json_object"})
    assert (await refused(ask, options={"provider": "llamafile"})).where == "response_format"


async def test_a_dialect_that_is_no_chat_is_refused():
    body = b'{"model": "p/m", "input": "hello"}'
    ask = Ask(dialect=openai_embeddings, head=openai_embeddings.head(body), body=body, call_id="c", model="m")
    assert "openai.embeddings" in str(await refused(ask))


# Keys and settings


async def test_the_key_is_the_one_that_the_call_is_to_use():
    async with asking(says(whole_answer({"content": "hi"})), key_env=["ONE", "TWO"]) as (upstream, provider):
        for label in ("ONE", "TWO", "ONE"):
            await provider.answer(msgspec.structs.replace(an_ask(), key=Key(label, KEYS[label])))
    used = [request.lower().partition(b"bearer ")[2][:6] for request in upstream.requests]
    assert used == [b"sk-one", b"sk-two", b"sk-one"]


async def test_without_a_name_for_it_the_key_is_where_the_library_looks(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-library")
    _, request = await answered(says(whole_answer({"content": "hi"})), an_ask(), key_env=None)
    assert b"bearer sk-library" in request.lower()


async def test_a_missing_key_says_where_it_is_looked_for(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ProviderError, match="OPENAI_API_KEY") as failed:
        await answered(says(), an_ask(), key_env=None)
    assert failed.value.status == 401


def test_a_missing_library_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "any_llm", None)
    with pytest.raises(UsageError, match=r"pip install 'doorstep\[longtail\]'"):
        any_llm_provider("aws", ProviderSettings(kind="any-llm", options={"provider": "bedrock"}))


async def test_a_package_of_a_service_that_is_missing_is_named():
    with pytest.raises(ProviderError, match=r"pip install any-llm-sdk\[watsonx\]"):
        await answered(says(), an_ask(), options={"provider": "watsonx"})


async def test_a_service_that_the_library_does_not_know_is_named():
    with pytest.raises(ProviderError, match="'nobody'"):
        await answered(says(), an_ask(), options={"provider": "nobody"})


def test_the_library_is_not_imported_until_it_is_needed():
    code = "import sys, doorstep.server; sys.exit('any_llm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('kind = "any-llm"', "needs options = {provider"),
        ('kind = "any-llm"\noptions = {region_name = "eu-west-1"}', "needs options = {provider"),
        ('base_url = "http://h/v1"\noptions = {provider = "bedrock"}', "is for kind"),
        ('kind = "compatible"', "`base_url` is missing"),
    ],
)
def test_settings_that_cannot_work_are_explained(tmp_path, lines, said):
    file = tmp_path / "doorstep.toml"
    file.write_text(f"[providers.aws]\n{lines}\n")
    with pytest.raises(UsageError, match=said):
        load(file)


def test_a_known_name_with_this_kind_keeps_nothing_of_what_is_known(tmp_path):
    file = tmp_path / "doorstep.toml"
    file.write_text('[providers.mistral]\nkind = "any-llm"\noptions = {provider = "mistral"}\n')
    found = load(file).providers["mistral"]
    assert (found.base_url, found.key_env) == ("", None)
    assert KNOWN_PROVIDERS["mistral"].base_url


def test_the_page_has_settings_of_services_that_the_library_knows(tmp_path):
    file = tmp_path / "doorstep.toml"
    file.write_text("\n".join(blocks(ROOT / "docs" / "how-to" / "more-providers.md", "toml")))
    services = {provider.options["provider"] for provider in load(file).providers.values() if provider.options}
    assert services
    assert services <= {known.value for known in LLMProvider}


def test_through_the_gateway_a_call_is_recorded_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setenv("ONE", "sk-one")
    fake = {"fake": ProviderSettings(base_url="fake:")}
    with serving(settings_for(tmp_path / "back", model=None, providers=fake)) as back:
        tail = ProviderSettings(kind="any-llm", base_url=f"{back}/v1", options=OPENAI, key_env="ONE")
        front = settings_for(
            tmp_path / "front", model=None, providers={"tail": tail}, traffic=TrafficSettings(retries=0)
        )
        with serving(front) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            stream = client.chat.completions.create(model="tail/fake/echo", messages=HELLO, stream=True)
            assert "".join(part.choices[0].delta.content or "" for part in stream) == "hello"
            with Store.open(tmp_path / "front" / "doorstep.db") as store:
                (call,) = wait_for(lambda: store.select(Call))
    assert (call.provider, call.served_model, call.input_tokens, call.output_tokens) == ("tail", "fake/echo", 1, 1)
