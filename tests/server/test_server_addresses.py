"""The server as a whole: its addresses, who may call, what it refuses, and that it outlives a kill."""

import json
import os
import subprocess
import sys
import threading

import httpx
import openai
import pytest
from gateway_parts import TellingEngine, serving, settings_for, wait_for

from doorstep.config import ProviderSettings
from doorstep.errors import EngineUnavailable, NotFound, UsageError
from doorstep.gateway.keys import Keys, Terms
from doorstep.server import create_app
from doorstep.store import Store
from doorstep.types import Call, Route

FAKE = {"fake": ProviderSettings(base_url="fake:")}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def engine(tmp_path):
    return TellingEngine(tmp_path / "model")


@pytest.fixture
def address(data, engine):
    with serving(settings_for(data, providers=FAKE), engine) as url:
        yield url


def ask(address, key="any", **fields):
    body = {"model": "fake/echo", "messages": HELLO} | fields
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})


def test_healthz_says_what_is_there(address, data, engine):
    answer = httpx.get(f"{address}/healthz")
    health = answer.json()
    assert (answer.status_code, health["status"], health["data"]) == (200, "ok", str(data.resolve()))
    assert health["model"] == {"name": "tiny", "folder": str(engine.folder), "digest": "d" * 64, "max_context": 128}
    assert health["cpu_seconds"] > 0
    assert health["recorder"]["dropped"] == 0


def test_healthz_tells_when_the_engine_is_gone(address, engine):
    async def gone():
        raise EngineUnavailable("the engine process has ended")

    engine.cpu_seconds = gone
    answer = httpx.get(f"{address}/healthz")
    assert (answer.status_code, answer.json()["status"]) == (
        503,
        "the engine is not there: the engine process has ended",
    )


def test_metrics_count_calls(address):
    ask(address)
    ask(address, model="fake/busy")
    text = httpx.get(f"{address}/metrics").text
    assert 'doorstep_calls_total{dialect="openai.chat",provider="fake",model="echo",status="200"} 1' in text
    assert 'doorstep_calls_total{dialect="openai.chat",provider="fake",model="busy",status="429"} 1' in text
    assert "doorstep_calls_dropped_total 0" in text


def test_home_says_where_things_are(address):
    assert httpx.get(address).json()["addresses"]["openai"] == f"{address}/v1"


def test_models_are_listed(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]


def test_the_training_service_is_mounted(address):
    answer = httpx.get(f"{address}/api/v1/get_server_capabilities", headers={"x-api-key": "tml-any"})
    assert answer.json()["supported_models"][0]["model_name"] == "tiny"


def test_a_workflow_is_served_by_its_route(address, data):
    assert ask(address, model="workflow/orders").status_code == 404
    with Store.open(data / "doorstep.db") as store:
        store.add(Route(route_id="r1", workflow="orders", variant="v", model="fake/echo", decision_id=None, at_us=1))
    answer = ask(address, model="workflow/orders")
    assert (answer.status_code, answer.json()["model"]) == (200, "echo")


@pytest.mark.parametrize("path", ["tinker://x", "tinker://s:train:0/sampler_weights/none"])
def test_a_checkpoint_that_is_not_there_is_said(address, path):
    answer = ask(address, model=path)
    assert answer.status_code in (400, 404)
    assert "tinker://" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not valid JSON"),
        (b'{"model": "\xff"}', 400, "UTF-8"),
        (b"[]", 400, "object"),
        (b'{"model": 3}', 400, "str"),
        (b"{}", 400, "model"),
        (b" " * 10_000_001, 413, "larger than 10 MB"),
    ],
)
def test_a_bad_body_is_a_clear_error(address, body, status, says):
    answer = httpx.post(f"{address}/v1/chat/completions", content=body)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


def test_other_addresses_and_run_ids_are_refused_in_the_same_shape(address):
    assert httpx.get(f"{address}/v1/embeddings").json()["error"]["type"] == "invalid_request_error"
    answer = httpx.post(f"{address}/v1/chat/completions", json={}, headers={"x-doorstep-run-id": "a b"})
    assert (answer.status_code, "run id" in answer.json()["error"]["message"]) == (400, True)


def test_a_run_may_be_named_by_a_header(address, data):
    body = {"model": "fake/echo", "messages": HELLO}
    httpx.post(f"{address}/v1/chat/completions", json=body, headers={"x-doorstep-run-id": "run_9"})
    with Store.open(data / "doorstep.db") as store:
        assert wait_for(lambda: store.select(Call))[0].run_id == "run_9"


def test_with_a_key_every_caller_needs_it(address, data):
    assert ask(address).status_code == 200
    _, key = Keys(data).create(Terms(name="laptop"))
    assert key.startswith("tml-")
    wait_for(lambda: ask(address).status_code == 401, 1)
    assert ask(address, key=key).status_code == 200
    training = f"{address}/api/v1/get_server_capabilities"
    assert [httpx.get(training, headers={"x-api-key": k}).status_code for k in ("tml-no", key)] == [401, 200]
    Keys(data).revoke(Keys(data).all()[0].key_id)
    wait_for(lambda: ask(address).status_code == 200, 1)


def test_without_a_key_pages_of_other_origins_are_refused(address):
    def status(origin):
        body = {"model": "fake/echo", "messages": HELLO}
        return httpx.post(f"{address}/v1/chat/completions", json=body, headers={"origin": origin}).status_code

    origins = ("http://evil.example:8000", "null", "http://localhost:3000", address)
    assert [status(origin) for origin in origins] == [401, 401, 200, 200]


def test_keys_are_not_kept_in_the_clear(data):
    _, key = Keys(data).create(Terms(name="laptop"))
    assert key not in (data / "keys.json").read_text()
    assert Keys(data).caller({"x-api-key": key})
    assert not Keys(data).caller({"authorization": "Bearer tml-wrong"})
    with pytest.raises(NotFound, match="doorstep keys list"):
        Keys(data).revoke("key_none")


def test_beyond_this_machine_a_key_is_needed(data):
    settings = settings_for(data, model=None, host="0.0.0.0")
    with pytest.raises(UsageError, match="doorstep keys create"):
        create_app(settings, "http://0.0.0.0")
    Keys(data).create(Terms(name="laptop"))
    assert create_app(settings, "http://0.0.0.0")


def test_a_model_that_is_not_there_is_said_at_once(data, tmp_path):
    with pytest.raises(UsageError, match="no model there"):
        create_app(settings_for(data, model=str(tmp_path)), "http://127.0.0.1")


def start_server(folder):
    """Start ``doorstep serve`` in a process of its own; return it and its address."""
    (folder / "doorstep.toml").write_text('[providers.fake]\nbase_url = "fake:"\n')
    note = folder / "data" / "server.json"
    note.unlink(missing_ok=True)
    command = [sys.executable, "-m", "doorstep", "serve", "--port", "0", "--model", "", "--data", "data"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, env=os.environ | {"NO_COLOR": "1"})
    url = json.loads(wait_for(lambda: note.exists() and note.read_text(), 30))["url"]
    wait_for(lambda: is_up(url), 30)
    return process, url


def is_up(url):
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("answers", [5, 60])
def test_a_kill_loses_no_answered_call(tmp_path, answers):
    process, url = start_server(tmp_path)
    answered = []

    def work():
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            try:
                while True:
                    with client.chat.completions.create(model="fake/echo", messages=HELLO, stream=True) as stream:
                        call = [chunk.id for chunk in stream][-1]
                    answered.append(call.removeprefix("chatcmpl-"))
            except openai.APIError:
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(answered) >= answers, 30)
    process.kill()
    process.wait()
    for thread in threads:
        thread.join()
    process, _url = start_server(tmp_path)
    process.terminate()
    process.wait()
    with Store.open(tmp_path / "data" / "doorstep.db") as store:
        assert set(answered) <= {call.call_id for call in store.select(Call)}
    assert list((tmp_path / "data" / "captures").iterdir()) == []
