"""A real Doorstep in front of a service that misbehaves, and the record of what came of it."""

import pytest
from bad_upstream import BadUpstream
from gateway_parts import serving, settings_for, wait_for
from served import Served

from doorstep.config import ModelSettings, ProviderSettings, TrafficSettings
from doorstep.store import Store
from doorstep.types import Attempt, Call

QUICK = TrafficSettings(backoff_s=0.01, backoff_most_s=0.02, budget_s=5)


@pytest.fixture
def upstream():
    with BadUpstream() as upstream:
        yield upstream


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def address(data, upstream, monkeypatch):
    monkeypatch.setenv("FIRST_KEY", "first")
    monkeypatch.setenv("SECOND_KEY", "second")
    providers = {
        "bad": ProviderSettings(base_url=upstream.url, first_byte_s=0.5, idle_s=0.5),
        "keyed": ProviderSettings(base_url=upstream.url, key_env=["FIRST_KEY", "SECOND_KEY"]),
        "fake": ProviderSettings(base_url="fake:"),
    }
    failing = ("cut", "short", "empty", "storm", "silent", "failing", "not-http", "patient")
    models = {
        name: ModelSettings(targets=[f"bad/{name}"], fallback=["fake/echo"], first_chunk_s=0.2) for name in failing
    }
    settings = settings_for(data, model=None, providers=providers, models=models, traffic=QUICK)
    with serving(settings) as url:
        yield url


@pytest.fixture
def serve(tmp_path, upstream):
    """Make a Doorstep that is a process of its own; none outlives the test."""
    made = []

    def served(data=None) -> Served:
        made.append(Served(tmp_path, f'[providers.bad]\nbase_url = "{upstream.url}"\n', data))
        return made[-1]

    yield served
    for one in made:
        one.kill()


@pytest.fixture
def store(address, data):
    with Store.open(data / "doorstep.db") as store:
        yield store


@pytest.fixture
def recorded(store):
    """Return the one call that was made, as soon as it is in the record."""

    def found() -> Call:
        [call] = wait_for(lambda: store.select(Call))
        return call

    return found


@pytest.fixture
def tries(store, recorded):
    """Return the tries that were noted of the one call, in order."""

    def found() -> list[Attempt]:
        return store.select(Attempt, call_id=recorded().call_id, order_by="started_us")

    return found
