"""The one request that a command makes, over real sockets."""

import asyncio
import socket

import pytest
from raw_upstream import upstream_that, whole

from doorstep.errors import ProviderError
from doorstep.fetch import fetch


async def test_json_goes_out_and_comes_back():
    async def say(caller):
        caller.send(whole(b'{"b":2}'))

    async with upstream_that(say) as upstream:
        answer = await asyncio.to_thread(fetch, f"{upstream.url}/x", {"a": 1}, headers={"x-one": "1"})
    head, _, body = upstream.requests[0].partition(b"\r\n\r\n")
    assert (answer.status, answer.json(), body) == (200, {"b": 2}, b'{"a":1}')
    assert head.startswith(b"POST /x ")
    assert b"x-one: 1" in head.lower()


async def test_an_error_is_an_answer():
    async def say(caller):
        caller.send(whole(b"no", status="404 Not Found"))

    async with upstream_that(say) as upstream:
        answer = await asyncio.to_thread(fetch, upstream.url)
    assert (answer.status, answer.text, upstream.requests[0][:6]) == (404, "no", b"GET / ")


async def test_no_proxy_is_asked(monkeypatch):
    async def say(caller):
        caller.send(whole(b"direct"))

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with upstream_that(say) as upstream:
        assert (await asyncio.to_thread(fetch, upstream.url)).body == b"direct"


@pytest.mark.parametrize("says", [b"", b"what?", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_who_does_not_answer_cannot_be_reached(says):
    async def say(caller):
        caller.send(says)
        caller.close()

    async with upstream_that(say) as upstream:
        with pytest.raises(ProviderError, match="cannot be reached"):
            await asyncio.to_thread(fetch, upstream.url)


def test_nobody_there_cannot_be_reached():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ProviderError, match="cannot be reached"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/")
