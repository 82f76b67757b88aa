"""The two front doors, the fast lane and the plain ASGI application, answer the same odd requests alike."""

import json
import re

import pytest
from gateway_parts import serving, settings_for
from raw_client import call, talk

from doorstep.config import ProviderSettings

CLOSE = "connection: close\r\n"
BODY = json.dumps({"model": "fake/echo", "messages": [{"role": "user", "content": "hello"}]}).encode()
CHUNKED = b"%x;a=b\r\n%b\r\n0\r\nx-trailer: 1\r\n\r\n" % (len(BODY), BODY)
OWN = ("date", "server", "x-doorstep-call-id", "connection", "transfer-encoding", "content-length")


def request(line, head="", body=b""):
    return f"{line}\r\nhost: localhost\r\n{CLOSE}{head}\r\n".encode() + body


def post(head, body=BODY, path="/v1/chat/completions", version="1.1"):
    return request(f"POST {path} HTTP/{version}", head, body)


LENGTH = f"content-length: {len(BODY)}\r\n"
ODD = {
    "whole": post(LENGTH),
    "stream": call("fake/echo", head=CLOSE, stream=True),
    "chunked": post("transfer-encoding: chunked\r\n", CHUNKED),
    "old": post(LENGTH, version="1.0"),
    "old that wants to stay": post(LENGTH + "connection: keep-alive\r\n", version="1.0"),
    "two equal lengths": post(LENGTH * 2),
    "two lengths": post(LENGTH + "content-length: 3\r\n"),
    "length and chunks": post(LENGTH + "transfer-encoding: chunked\r\n", CHUNKED),
    "unknown coding": post("transfer-encoding: gzip\r\n", CHUNKED),
    "length with a sign": post(f"content-length: +{len(BODY)}\r\n"),
    "length with a space": post(f"content-length : {len(BODY)}\r\n"),
    "folded header": post(LENGTH + "x-a: b\r\n c\r\n"),
    "header with NUL": post(LENGTH + "x-a: a\0b\r\n"),
    "line feeds": post(LENGTH).replace(b"\r\n", b"\n"),
    "no body": post(""),
    "no JSON": post("content-length: 1\r\n", b"{"),
    "too large": call("fake/echo", head=CLOSE, x="x" * 10_000_000),
    "expects to be told": post(LENGTH + "expect: 100-continue\r\n"),
    "query": post(LENGTH, path="/v1/chat/completions?a=b"),
    "whole address": post(LENGTH, path="http://localhost/v1/chat/completions"),
    "escaped path": post(LENGTH, path="/v1/%63hat/completions"),
    "slash too much": post(LENGTH, path="//v1/chat/completions"),
    "run": post(LENGTH, path="/runs/r1/v1/chat/completions"),
    "bad run": post(LENGTH, path="/runs/r%201/v1/chat/completions"),
    "bad run in a header": post(LENGTH + "x-doorstep-run-id: a b\r\n"),
    "web page elsewhere": post(LENGTH + "origin: http://web.example\r\n"),
    "web page elsewhere, bad run": post(LENGTH + "origin: null\r\nx-doorstep-run-id:\r\n"),
    "unknown model": call("nobody/knows", head=CLOSE),
    "refused": call("fake/busy", head=CLOSE),
    "GET": request("GET /v1/chat/completions HTTP/1.1"),
    "OPTIONS": request("OPTIONS /v1/chat/completions HTTP/1.1"),
    "one after the other": call("fake/echo") + request("GET /v1/models HTTP/1.1"),
    "the other way round": request("GET /v1/models HTTP/1.1").replace(CLOSE.encode(), b"") + post(LENGTH),
}


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    """Give the addresses of two servers: one with the fast lane, one as any ASGI server has it."""
    fake = {"fake": ProviderSettings(base_url="fake:")}
    one, other = (settings_for(tmp_path_factory.mktemp(name), model=None, providers=fake) for name in ("fast", "asgi"))
    with serving(one) as fast, serving(other, http="httptools") as plain:
        yield fast, plain


def answers(address, name):
    return [shown(answer) for answer in talk(address, ODD[name])]


def shown(answer):
    headers = {name: value for name, value in answer.headers.items() if name not in OWN}
    body = re.sub(rb'"(id|created)":("[^"]*"|\d+)', b"", answer.body)
    return answer.status, headers, body


@pytest.mark.parametrize("name", ODD)
def test_both_doors_answer_alike(doors, name):
    fast, plain = (answers(address, name) for address in doors)
    assert fast
    assert fast == plain


@pytest.mark.parametrize(
    "name", ["two lengths", "two equal lengths", "length and chunks", "unknown coding", "length with a sign"]
)
def test_a_length_that_can_be_read_in_two_ways_is_refused(doors, name):
    assert [status for status, _, _ in answers(doors[0], name)] == [400]
