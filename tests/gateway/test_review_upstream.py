"""What an upstream says that must not reach a client as it is: our keys, line breaks in headers, redirects."""

import bad_upstream
import pytest
from bad_upstream import BadUpstream
from gateway_parts import serving, settings_for, wait_for
from raw_client import ask, call

from doorstep.config import ProviderSettings, TrafficSettings
from doorstep.store import Store
from doorstep.types import Attempt, Call

SECRET = "sk-ours-3f9a8c"
ANSWER = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'


async def says_the_key(_, to):
    await to.whole(
        "401 Unauthorized", b'{"error":{"message":"no such key: %b"}}' % to.headers["authorization"].encode()
    )


async def redirects(_, to):
    await to.whole("302 Found", b"<html>moved</html>", "location: https://new.example/v1")


async def odd_status(_, to):
    await to.whole("999 Request denied", b"{}")


async def folds_a_header(_, to):
    await to.whole("200 OK", ANSWER, "x-request-id: one\r\n set-cookie: two")


async def breaks_a_header(_, to):
    await to.whole("200 OK", ANSWER, "x-request-id: one\rset-cookie: two")


async def says_it_in_latin(_, to):
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: caf\xe9\r\ncontent-length: %d\r\n\r\n"
    await to.send(head % len(ANSWER) + ANSWER)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def asking(data, monkeypatch):
    """Return a function: ask an upstream of this manner."""
    monkeypatch.setenv("OUR_KEY", SECRET)
    with BadUpstream() as upstream:
        provider = ProviderSettings(base_url=upstream.url, key_env="OUR_KEY")
        traffic = TrafficSettings(retries=0)

        def asked(manner):
            monkeypatch.setitem(bad_upstream.MANNERS, "odd", manner)
            return ask(address, call("bad/odd"))

        with serving(settings_for(data, model=None, providers={"bad": provider}, traffic=traffic)) as address:
            yield asked


def test_a_key_that_an_upstream_repeats_reaches_neither_client_nor_record(asking, data):
    answer = asking(says_the_key)
    assert b"no such key" in answer.body
    with Store.open(data / "doorstep.db") as store:
        [kept] = wait_for(lambda: store.select(Call))
        said = [answer.body, store.blob(kept.response_digest), *(repr(one).encode() for one in store.select(Attempt))]
    assert not any(SECRET.encode() in one for one in said)


def test_a_redirect_is_an_error_that_says_where_to(asking):
    answer = asking(redirects)
    assert answer.status == 502
    assert b"https://new.example/v1" in answer.body


def test_a_status_that_is_none_is_an_error(asking):
    assert asking(odd_status).status == 502


@pytest.mark.parametrize("manner", [folds_a_header, breaks_a_header])
def test_an_upstream_cannot_give_a_client_a_header_of_its_own(asking, manner):
    assert "set-cookie" not in asking(manner).headers


def test_a_header_that_is_not_ascii_passes_as_it_is(asking):
    assert asking(says_it_in_latin).headers["x-request-id"] == "caf\xe9"
