"""A server without keys is open to this machine's programs, and to no web page: neither of another origin nor of a
name that was made to mean this machine (DNS rebinding)."""

import pytest
from gateway_parts import TellingEngine, serving, settings_for
from raw_client import call, talk

from doorstep.config import ProviderSettings

ROUTES = [
    "POST /v1/chat/completions", "POST /runs/r/v1/messages", "POST /v1/embeddings",
    "GET /v1/models", "GET /v1/models/tiny", "GET /v1/videos", "POST /v1/videos", "GET /v1/videos/v/content",
    "POST /feedback", "GET /feedback?run_id=r", "GET /runs/r/feedback", "GET /admin/keys", "POST /admin/keys",
    "GET /admin/log", "GET /metrics", "GET /api/v1/training_runs", "POST /api/v1/create_session",
]  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    settings = settings_for(folder / "data", providers={"fake": ProviderSettings(base_url="fake:")})
    with serving(settings, TellingEngine(folder / "model")) as url:
        yield url


def status(address, route, *headers, host="localhost"):
    own = f"host: {host}", "connection: close", "content-length: 2", "x-api-key: tml-any"
    lines = [f"{route} HTTP/1.1", *own, *headers, "", "{}"]
    [answer] = talk(address, "\r\n".join(lines).encode())
    return answer.status


@pytest.mark.parametrize("route", ROUTES)
def test_a_page_whose_name_means_this_machine_is_not_let_in(address, route):
    assert status(address, route, host="web.example:8000") == 401


@pytest.mark.parametrize("route", ROUTES)
def test_a_page_of_another_origin_is_not_let_in(address, route):
    assert status(address, route, "origin: https://web.example") == 401


@pytest.mark.parametrize("route", ROUTES)
def test_a_program_of_this_machine_is_let_in(address, route):
    assert status(address, route) != 401


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "[::1]:8000", "host.docker.internal:8000", "app.localhost", "box"])
def test_a_name_that_no_page_can_have_is_one_of_this_machine(address, host):
    assert status(address, "GET /v1/models", host=host) == 200


def test_a_client_that_names_no_host_is_let_in(address):
    request = call("fake/echo", head="connection: close\r\n").replace(b"host: localhost\r\n", b"")
    assert [answer.status for answer in talk(address, request)] == [200]
