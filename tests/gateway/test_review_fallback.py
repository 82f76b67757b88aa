"""Fallbacks that cannot take a request, clients that leave between tries, and a server that stops in the middle."""

import time

import pytest
from bad_upstream import MANNERS, BadUpstream
from gateway_parts import serving, settings_for, wait_for
from raw_client import Line, ask, call

from doorstep.config import ModelSettings, ProviderSettings, TrafficSettings
from doorstep.store import Store
from doorstep.types import Call

VOICES = ProviderSettings(base_url="http://127.0.0.1:1", kind="hume")  # chats in no dialect


@pytest.fixture
def upstream():
    with BadUpstream() as upstream:
        yield upstream


@pytest.fixture
def settings(data, upstream):
    providers = {
        "bad": ProviderSettings(base_url=upstream.url),
        "voices": VOICES,
        "fake": ProviderSettings(base_url="fake:"),
    }
    models = {
        "first": ModelSettings(targets=["bad/failing"], fallback=["voices/x"]),
        "last": ModelSettings(targets=["voices/x"], fallback=["fake/echo"]),
        "none": ModelSettings(targets=["voices/x"]),
    }
    traffic = TrafficSettings(retries=1, backoff_s=0.01)
    return settings_for(data, model=None, providers=providers, models=models, traffic=traffic)


@pytest.fixture
def recorded(data):
    def found():
        with Store.open(data / "doorstep.db") as store:
            [kept] = wait_for(lambda: store.select(Call))
        return kept

    return found


def test_a_fallback_that_cannot_take_the_request_does_not_hide_why_it_was_needed(settings, recorded):
    with serving(settings) as address:
        answer = ask(address, call("first"))
        assert (answer.status, b"it fell over" in answer.body) == (500, True)
        kept = recorded()
    assert (kept.provider, kept.status_code) == ("bad", 500)


def test_a_request_that_the_first_cannot_take_goes_to_the_next(settings, recorded):
    with serving(settings) as address:
        assert ask(address, call("last")).status == 200
        assert recorded().provider == "fake"


def test_a_request_that_nobody_can_take_is_the_clients_error(settings):
    with serving(settings) as address:
        answer = ask(address, call("none"))
    assert answer.status == 400
    assert b"voices does not serve openai.chat" in answer.body


def test_a_client_that_leaves_between_two_tries_is_not_asked_for_again(settings, upstream, recorded, monkeypatch):
    async def busy(_, to):
        await to.whole("429 Too Many Requests", b"{}", "retry-after: 0.6")

    monkeypatch.setitem(MANNERS, "odd", busy)
    with serving(settings) as address:
        with Line(address) as line:
            line.send(call("bad/odd"))
            wait_for(lambda: upstream.asked["odd"])
        kept = recorded()
        time.sleep(1)
    assert (kept.status_code, upstream.asked["odd"]) == (499, 1)


def test_a_stream_that_the_servers_end_cuts_is_cut_for_the_client_and_recorded(settings, recorded):
    with serving(settings) as address:
        line = Line(address)
        line.send(call("bad/stalled", stream=True))
        assert line.said.readline() == b"HTTP/1.1 200 OK\r\n"
    with line:
        assert not line.rest().endswith(b"0\r\n\r\n")
    assert recorded().status_code == 499


def test_a_server_that_ends_does_not_wait_for_a_request_that_is_not_all_there(settings):
    begun = time.monotonic()
    with serving(settings) as address:
        line = Line(address)
        line.send(call("bad/well")[:-5])
        assert ask(address, call("fake/echo")).status == 200
    with line:
        assert line.rest() == b""
    assert time.monotonic() - begun < 20
