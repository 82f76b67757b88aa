"""Chats in a dialect that a service does not speak, over real sockets."""

import json

import pytest
from raw_upstream import LAST_CHUNK, chunk, chunked, upstream_that, whole

from doorstep.config import ProviderSettings
from doorstep.errors import BadInput, ProviderError
from doorstep.gateway.dialects import anthropic_messages, openai_chat, openai_embeddings
from doorstep.gateway.providers.base import Ask
from doorstep.gateway.providers.http import http_provider
from doorstep.http_client import Client

JSON = "Content-Type: application/json"
EVENTS = "Content-Type: text/event-stream"
ASKED = {"model": "p/m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
WHOLE = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi there"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}  # fmt: skip


def part(delta, reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    piece = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": [choice]}
    return b"data: " + json.dumps(piece).encode() + b"\n\n"


def an_ask(dialect=anthropic_messages, **fields):
    body = json.dumps(ASKED | fields).encode()
    return Ask(dialect=dialect, head=dialect.head(body), body=body, call_id="call_1", model="m")


@pytest.fixture
async def client():
    async with Client() as made:
        yield made


def provider(client, upstream, **settings):
    return http_provider("p", ProviderSettings(base_url=f"{upstream.url}/v1", **settings), client, {})


async def all_of(body):
    pieces = []
    while piece := await body.next():
        pieces.append(piece)
    return b"".join(pieces)


async def test_an_answer_comes_back_in_the_clients_dialect(client):
    async def say(caller):
        caller.send(whole(json.dumps(WHOLE).encode(), JSON))

    async with upstream_that(say) as upstream:
        answer = await provider(client, upstream).answer(an_ask(system="be short"))
        head, _, sent = upstream.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions ")
    asked = json.loads(sent)
    assert (asked["model"], [message["role"] for message in asked["messages"]]) == ("m", ["system", "user"])
    said = json.loads(answer.body)
    assert (said["type"], said["stop_reason"]) == ("message", "end_turn")
    assert [block["text"] for block in said["content"]] == ["hi there"]
    assert (said["usage"]["input_tokens"], said["usage"]["output_tokens"]) == (3, 2)
    assert answer.dialect == "openai.chat"


async def test_a_stream_stays_a_stream(client):
    async def say(caller):
        caller.send(chunked(EVENTS), chunk(part({"role": "assistant", "content": "hi"})))
        await caller.silence()

    async with upstream_that(say) as upstream:
        answer = await provider(client, upstream).answer(an_ask(stream=True))
        assert answer.content_type == "text/event-stream"
        seen = b""
        while b'"text":"hi"' not in seen:  # while the upstream has said no more
            seen += await answer.body.next()
        assert b"event: message_start" in seen
        await answer.body.close()
        await upstream.callers[0].gone.wait()


async def test_a_stream_that_is_cut_upstream_is_an_error(client):
    async def say(caller):
        caller.send(chunked(EVENTS), chunk(part({"content": "hi"})))
        caller.close()

    async with upstream_that(say) as upstream:
        answer = await provider(client, upstream).answer(an_ask(stream=True))
        with pytest.raises(ProviderError, match="p broke off its answer"):
            await all_of(answer.body)


async def test_a_stream_read_to_its_end_leaves_the_connection(client):
    async def say(caller):
        end = b"data: [DONE]\n\n"
        caller.send(chunked(EVENTS), chunk(part({"content": "hi"})), chunk(part({}, "stop") + end), LAST_CHUNK)

    async with upstream_that(say) as upstream:
        for _ in range(2):
            answer = await provider(client, upstream).answer(an_ask(stream=True))
            seen = await all_of(answer.body)
            await answer.body.close()
            assert seen.rstrip().endswith(b'data: {"type":"message_stop"}')
        assert len(upstream.callers) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too many","type":"t"}}', "too many"),
        (b'[{"error":{"code":429,"message":"too many","status":"S"}}]', "too many"),
        (b'{"error":"too many"}', "too many"),
        (b"<html>busy</html>", "<html>busy</html>"),
        (b"", "status 429, without a word"),
    ],
)
async def test_an_upstreams_error_comes_in_the_clients_dialect(client, body, message):
    async def say(caller):
        caller.send(whole(body, JSON, "Retry-After: 7", status="429 Too Many"))

    async with upstream_that(say) as upstream:
        answer = await provider(client, upstream).answer(an_ask(stream=True))
    said = json.loads(answer.body)
    assert (answer.status, answer.content_type, answer.headers["retry-after"]) == (429, "application/json", "7")
    assert (said["type"], said["error"]["type"]) == ("error", "rate_limit_error")
    assert said["error"]["message"] == message


async def test_what_cannot_be_translated_is_named_before_anything_is_sent(client):
    async def say(caller):
        caller.send(whole(b"{}", JSON))

    async with upstream_that(say) as upstream:
        anthropic = provider(client, upstream, kind="anthropic")
        with pytest.raises(BadInput, match="logprobs"):
            await anthropic.answer(an_ask(openai_chat, logprobs=True))
        assert not upstream.requests


async def test_what_is_no_chat_is_not_translated(client):
    async def say(caller):
        caller.send(whole(b"{}", JSON))

    async with upstream_that(say) as upstream:
        with pytest.raises(BadInput, match=r"p does not serve openai\.embeddings"):
            await provider(client, upstream, kind="anthropic").answer(an_ask(openai_embeddings, input="h"))


async def test_an_openai_client_chats_with_an_anthropic_service(client):
    answer = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "max_tokens",
        "content": [{"type": "text", "text": "hi"}], "usage": {"input_tokens": 3, "output_tokens": 1},
    }  # fmt: skip

    async def say(caller):
        caller.send(whole(json.dumps(answer).encode(), JSON, "Request-Id: req_1"))

    async with upstream_that(say) as upstream:
        found = await provider(client, upstream, kind="anthropic").answer(an_ask(openai_chat))
        assert upstream.requests[0].startswith(b"POST /v1/messages ")
    choice = json.loads(found.body)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hi", "length")
    assert (found.upstream_id, found.dialect) == ("req_1", "anthropic.messages")
