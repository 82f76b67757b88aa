"""Hosted providers over real HTTP: what passes through, and what becomes of an upstream that fails."""

import asyncio
import json
import socket

import httpx
import openai
import pytest
from gateway_parts import hang_up, serving, settings_for, wait_for
from starlette.requests import Request

from doorstep.config import ProviderSettings, TrafficSettings
from doorstep.store import Store
from doorstep.types import Call, Node

HELLO = [{"role": "user", "content": "hello"}]
ANSWER = (
    b'{ "id":"up-1", "choices":[{"index":0,"message":{"role":"assistant","content":"hi","odd":1},'
    b'"finish_reason":"stop"}], "usage":{"prompt_tokens":1000,"completion_tokens":2000}, "extra":{"kept": 1.50} }'
)
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"h\xc3\xbc"},"finish_reason":null}],"odd":[ 1 ]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Upstream:
    """A hosted service of the test's making: sends ``pieces``, then ends, breaks off or stays silent."""

    def __init__(self):
        self.status, self.kind, self.headers = 200, "application/json", {}
        self.pieces = [ANSWER]
        self.then = "end"
        self.requests = []
        self.gone = 0
        self.ports = set()

    async def __call__(self, scope, receive, send):
        request = Request(scope, receive)
        self.ports.add(request.client.port)
        self.requests.append((dict(request.headers), await request.body()))
        if self.then == "mute":
            await self._silence(receive)
            return
        headers = [(b"content-type", self.kind.encode()), *((k.encode(), v.encode()) for k, v in self.headers.items())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0.01)
        if self.then == "end":
            await send({"type": "http.response.body", "body": b""})
        elif self.then == "silence":
            await self._silence(receive)

    async def _silence(self, receive):
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone += 1

    def stream(self, *pieces, then="end"):
        self.kind, self.pieces, self.then = "text/event-stream", list(pieces), then


@pytest.fixture
def upstream():
    return Upstream()


@pytest.fixture
def address(data, upstream, monkeypatch):
    monkeypatch.setenv("TEST_UPSTREAM_KEY", "secret")
    with socket.socket() as taken, serving(settings_for(data), app=upstream) as url:
        taken.bind(("127.0.0.1", 0))  # and not listening: nobody answers there
        providers = {
            "openai": ProviderSettings(base_url=f"{url}/base/", key_env="TEST_UPSTREAM_KEY"),
            "hasty": ProviderSettings(base_url=url, first_byte_s=0.5, idle_s=0.5),
            "nobody": ProviderSettings(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}"),
        }
        traffic = TrafficSettings(retries=0)  # what becomes of a failure that nothing more is tried after
        with serving(settings_for(data, model=None, providers=providers, traffic=traffic)) as doorstep:
            yield doorstep


@pytest.fixture
def recorded(data):
    with Store.open(data / "doorstep.db") as store:
        yield lambda: wait_for(lambda: store.select(Call))[0]


def post(address, path="/v1/chat/completions", **fields):
    body = {"model": "openai/gpt-4o", "messages": HELLO} | fields
    return httpx.post(f"{address}{path}", json=body, headers={"authorization": "Bearer ours"})


def test_bodies_pass_byte_for_byte(address, upstream):
    body = b'{"odd": {"a":1.50, "b":[ ]}, "model":"openai/a/b", "messages":[{"role":"user", "content":"h"}]}'
    answer = httpx.post(f"{address}/v1/chat/completions", content=body)
    headers, sent = upstream.requests[0]
    assert answer.content == ANSWER
    assert b'{"a":1.50, "b":[ ]}' in sent
    assert b'[{"role":"user", "content":"h"}]' in sent
    assert json.loads(sent)["model"] == "a/b"
    assert headers["authorization"] == "Bearer secret"


def test_a_call_is_recorded_and_priced(address, recorded, data):
    post(address, "/runs/run_7/v1/chat/completions", temperature=0.2)
    call = recorded()
    assert (call.run_id, call.provider, call.served_model, call.requested_model) == (
        "run_7", "openai", "gpt-4o", "openai/gpt-4o",
    )  # fmt: skip
    assert (call.input_tokens, call.output_tokens, call.finish_reason) == (1000, 2000, "stop")
    assert call.cost_microusd == 22_500  # $2.50 and $10 a million tokens
    assert call.gaps == ["no_token_ids"]
    with Store.open(data / "doorstep.db") as store:
        assert store.blob(call.response_digest) == ANSWER
        assert sorted(node.role for node in store.select(Node)) == ["assistant", "user"]


def test_a_stream_passes_byte_for_byte(address, upstream, recorded):
    upstream.stream(b": comment\n\n", CHUNK[:40], CHUNK[40:], LAST + DONE)
    answer = post(address, stream=True)
    assert answer.content == b": comment\n\n" + CHUNK + LAST + DONE
    call = recorded()
    assert (call.stream, call.finish_reason, call.output_tokens) == (True, "stop", None)
    assert call.gaps == ["no_token_ids", "no_usage", "no_price"]


def test_pieces_are_passed_on_as_they_come(address, upstream):
    upstream.stream(CHUNK, then="silence")
    body = {"model": "hasty/m", "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == CHUNK  # while the upstream is silent
        assert b"hasty was silent for 0.5 s" in next(pieces)
        with pytest.raises(httpx.RemoteProtocolError):
            next(pieces)


@pytest.mark.parametrize(("then", "model"), [("break", "openai/m"), ("silence", "hasty/m")])
def test_a_stream_that_breaks_upstream_breaks_here(address, upstream, recorded, then, model):
    upstream.stream(CHUNK, then=then)
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.APIError, match=model.partition("/")[0]),
        client.chat.completions.create(model=model, messages=HELLO, stream=True) as stream,
    ):
        list(stream)
    call = recorded()
    assert call.error.startswith(call.provider)
    assert (call.status_code, call.finish_reason) == (200, None)


def test_a_whole_answer_that_breaks_upstream_is_a_clean_error(address, upstream):
    upstream.pieces, upstream.then = [ANSWER[:50]], "break"
    answer = post(address)
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "server_error")


@pytest.mark.parametrize("status", [400, 429, 500])
def test_an_upstreams_error_passes_through(address, upstream, recorded, status):
    upstream.status, upstream.pieces = status, [b'{"error":{"message":"no","type":"t","code":"c","param":null}}']
    upstream.headers = {"retry-after": "7", "x-request-id": "r1", "set-cookie": "a=b"}
    answer = post(address, stream=True)
    assert (answer.status_code, answer.content) == (status, upstream.pieces[0])
    assert (answer.headers["retry-after"], answer.headers["x-request-id"]) == ("7", "r1")
    assert "set-cookie" not in answer.headers
    assert (recorded().status_code, recorded().error) == (status, upstream.pieces[0].decode())


def test_an_upstream_that_never_begins_is_a_timeout(address, upstream):
    upstream.then = "mute"
    answer = post(address, model="hasty/m", stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_error")
    wait_for(lambda: upstream.gone)


def test_an_upstream_that_is_not_there_is_a_bad_gateway(address, recorded):
    answer = post(address, model="nobody/m")
    assert answer.status_code == 502
    assert "nobody cannot be reached" in answer.json()["error"]["message"]
    assert recorded().status_code == 502


def test_a_client_that_goes_away_cancels_the_upstream(address, upstream, recorded):
    upstream.stream(CHUNK, then="silence")
    hang_up(address, {"model": "openai/m", "stream": True}, when=lambda: upstream.requests)
    wait_for(lambda: upstream.gone)
    assert recorded().status_code == 499


def test_connections_upstream_are_used_again(address, upstream):
    upstream.stream(CHUNK, LAST, DONE)
    for _ in range(3):
        post(address, stream=True)
    assert len(upstream.ports) == 1


def test_a_chat_in_another_dialect_is_translated_and_recorded_as_the_client_saw_it(address, upstream, recorded):
    body = {"model": "openai/gpt-4o", "max_tokens": 9, "messages": HELLO}
    answer = httpx.post(f"{address}/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})
    headers, sent = upstream.requests[0]
    assert json.loads(sent)["model"] == "gpt-4o"
    assert "anthropic-version" not in headers
    assert [block["text"] for block in answer.json()["content"]] == ["hi"]
    call = recorded()
    assert (call.dialect, call.upstream_dialect) == ("anthropic.messages", "openai.chat")
    assert (call.input_tokens, call.output_tokens, call.cost_microusd) == (1000, 2000, 22_500)


def test_an_unknown_model_says_what_there_is(address):
    answer = post(address, model="gpt-4o")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "openai/MODEL" in answer.json()["error"]["message"]
