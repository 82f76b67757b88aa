"""Clients that misbehave: bodies that are too large, too deep or no JSON, and connections that never end."""

import asyncio
import json
import resource
import socket
import time

import httpx
import pytest
from served import HELLO, ask

SLOW = 10_000


def post(address, body, path="/v1/chat/completions"):
    return httpx.post(f"{address}{path}", content=body, timeout=30, trust_env=False)


# Bodies


def test_a_huge_body_is_refused_and_the_next_one_answered(address, upstream):
    filler = json.dumps({"model": "bad/well", "messages": [{"role": "user", "content": "x" * 11_000_000}]})
    assert post(address, filler).status_code == 413
    assert upstream.asked["well"] == 0
    assert ask(address).status_code == 200


@pytest.mark.parametrize("field", ["messages", "odd"])
def test_a_deeply_nested_body_is_a_clear_error_or_passes(address, upstream, field):
    fields = {"messages": json.dumps(HELLO)} | {field: "[" * 100_000 + "]" * 100_000}
    body = '{"model":"bad/well",' + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
    answer = post(address, body)
    assert answer.status_code in (200, 400)
    assert answer.status_code == 200 or "error" in answer.json()
    assert ask(address).status_code == 200


def test_of_two_equal_keys_one_reaches_the_upstream_and_it_is_the_one_that_was_looked_at(address, upstream):
    body = b'{"model":"bad/failing","messages":[],"model":"bad/well"}'
    assert post(address, body).status_code == 200
    pairs = json.loads(upstream.bodies[-1], object_pairs_hook=list)
    assert [value for name, value in pairs if name == "model"] == ["well"]


@pytest.mark.parametrize("body", [b'{"model":"\xff"}', b"\xff", b"", b"[]", b'{"model":"bad/well"'])
def test_a_body_that_is_no_json_is_a_clear_error(address, upstream, body):
    answer = post(address, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert upstream.asked["well"] == 0


def test_what_is_no_utf8_in_a_field_that_we_do_not_look_at_is_the_upstreams_to_judge(
    address, upstream, recorded, store
):
    body = b'{"model":"bad/well","messages":[{"role":"user","content":"\xff\xfe"}]}'
    assert post(address, body).status_code == 200
    assert b'"content":"\xff\xfe"' in upstream.bodies[-1]
    assert store.blob(recorded().request_digest) == body


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\nhost", b"\x16\x03\x01\x02\x00", b"POST /v1/chat/completions\r\n\r\n"]
)
def test_what_is_no_http_harms_nobody(address, head):
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    assert ask(address).status_code == 200


# Connections


async def open_slowly(port: int, head: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    return writer


async def test_thousands_of_slow_clients_hold_nobody_up(serve):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(SLOW, most - 500)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    served = serve()
    try:
        url = await asyncio.to_thread(served.start)
        port = int(url.rpartition(":")[2])
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\n{"
        writers = []
        for _ in range(0, count, 500):
            writers += await asyncio.gather(*(open_slowly(port, head) for _ in range(min(500, count - len(writers)))))
        begun = time.monotonic()
        answers = [await asyncio.to_thread(ask, url) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert time.monotonic() - begun < 10
        for writer in writers:
            writer.transport.abort()
        assert await asyncio.to_thread(served.stop) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
