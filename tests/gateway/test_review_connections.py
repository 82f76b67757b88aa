"""Clients' connections at their worst: cut up, flooded, never read, and offered what we do not speak."""

import http.client
import json
import time

import httpx
import pytest
from bad_upstream import ANSWER, BadUpstream
from gateway_parts import serving, settings_for, wait_for
from raw_client import Line, ask, call, talk

from doorstep.config import ProviderSettings, TrafficSettings
from doorstep.gateway import fastlane
from doorstep.gateway.recorder import Recorder
from doorstep.store import Store
from doorstep.types import Call

CLOSE = "connection: close\r\n"
OFFER = f"{CLOSE}connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"


@pytest.fixture
def upstream():
    with BadUpstream() as upstream:
        yield upstream


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def address(data, upstream):
    bad = ProviderSettings(base_url=upstream.url, first_byte_s=2, idle_s=2)
    traffic = TrafficSettings(backoff_s=0.01, backoff_most_s=0.02, budget_s=2)
    settings = settings_for(
        data, model=None, providers={"bad": bad, "fake": ProviderSettings(base_url="fake:")}, traffic=traffic
    )
    with serving(settings) as url:
        yield url


def cut(data, pieces):
    size = -(-len(data) // pieces)
    return [data[at : at + size] for at in range(0, len(data), size)]


def send_all(line, data):
    line.send(*(data[at : at + 100_000] for at in range(0, len(data), 100_000)))


def test_a_request_in_single_bytes_is_answered(address):
    request = call("bad/well", head=CLOSE)
    [answer] = talk(address, *cut(request, len(request)))
    assert (answer.status, json.loads(answer.body)) == (200, ANSWER)


@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_a_client_that_offers_http2_is_answered_in_http1(address, pieces):
    request = call("bad/well", head=OFFER)
    [answer] = talk(address, *cut(request, pieces))
    assert (answer.status, json.loads(answer.body)) == (200, ANSWER)


def test_two_requests_that_offer_http2_are_both_answered(address):
    with Line(address) as line:
        for _ in range(2):
            line.send(call("bad/well", head=OFFER.replace(CLOSE, "")))
            assert line.answer().status == 200


def test_to_go_on_is_not_said_in_the_middle_of_another_answer(address):
    waiting = call("bad/well", head=f"{CLOSE}expect: 100-continue\r\n")
    head, body = waiting.split(b"\r\n\r\n")
    with Line(address) as line:
        line.send(call("bad/drip", stream=True) + head + b"\r\n\r\n")
        assert line.answer().body.endswith(b"data: [DONE]\n\n")
        assert line.said.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert line.said.readline() == b"\r\n"
        line.send(body)
        assert json.loads(line.answer().body) == ANSWER


def test_a_head_without_an_end_is_refused(address):
    with Line(address) as line:
        line.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-long: ")
        with pytest.raises(ConnectionError):
            send_all(line, 2000 * b"x" * 10_000)
    assert httpx.get(f"{address}/healthz", trust_env=False).status_code == 200


def test_no_more_is_read_of_a_client_that_only_asks(address):
    flood = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n" * 2000
    with Line(address) as line:
        line.socket.settimeout(3)
        with pytest.raises(TimeoutError):
            send_all(line, flood * 250)  # 30 MB, of which the operating system holds some


def test_whoever_asks_for_much_at_once_and_reads_late_gets_it_all(address):
    with Line(address) as line:
        line.send(call("fake/echo", messages=[{"role": "user", "content": "x" * 100_000}]) * 20)
        time.sleep(0.5)
        answers = [line.answer() for _ in range(20)]
    assert {(answer.status, len(answer.body) > 100_000) for answer in answers} == {(200, True)}


def test_a_client_that_takes_nothing_more_is_given_up(address, data, upstream, monkeypatch):
    monkeypatch.setattr(fastlane, "STUCK_S", 0.3)
    with Line(address) as line:
        line.send(call("bad/endless", stream=True))
        with Store.open(data / "doorstep.db") as store:
            [kept] = wait_for(lambda: store.select(Call))
        wait_for(lambda: upstream.open == 0)
    assert kept.status_code == 499
    assert kept.first_us is not None


def test_a_call_that_cannot_be_kept_does_not_leave_its_client_waiting(address, monkeypatch):
    def fails(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(Recorder, "put", fails)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(address, call("bad/not-http"))
