"""The own engine goes away: calls go to the fallback, or are told."""

import pytest
from gateway_parts import TellingEngine, serving, settings_for
from served import ask

from doorstep.config import ModelSettings, ProviderSettings
from doorstep.errors import EngineError, EngineUnavailable


@pytest.fixture
def engine(tmp_path):
    return TellingEngine(tmp_path / "model")


@pytest.fixture
def address(engine, data):
    providers = {"fake": ProviderSettings(base_url="fake:")}
    models = {"own": ModelSettings(targets=["tiny"], fallback=["fake/echo"])}
    with serving(settings_for(data, providers=providers, models=models), engine) as url:
        yield url


@pytest.mark.parametrize("error", [EngineUnavailable("it has ended"), EngineError("it fell over", "server")])
@pytest.mark.parametrize("stream", [False, True])
def test_the_fallback_answers_for_an_engine_that_is_away(address, engine, recorded, error, stream):
    engine.fails_after = (0, error)
    answer = ask(address, "own", stream=stream)
    assert (answer.status_code, recorded().provider) == (200, "fake")


def test_without_a_fallback_the_client_is_told_at_once(address, engine, recorded):
    engine.fails_after = (0, EngineUnavailable("it has ended"))
    answer = ask(address, "tiny")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert (recorded().provider, len(engine.seen)) == ("local", 1)


def test_a_request_that_the_engine_refuses_is_not_sent_elsewhere(address, engine, recorded):
    engine.fails_after = (0, EngineError("the prompt is empty", "user"))
    assert ask(address, "own").status_code == 400
    assert recorded().provider == "local"
