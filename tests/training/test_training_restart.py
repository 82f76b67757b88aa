"""kill -9 of a real server, and of its engine, under load: answers stay, and training goes on bit for bit."""

import os
import signal

import httpx
import pytest
import tinker
from gateway_parts import wait_for
from served import Served
from tinker import types
from tinker.lib.retryable_exception import RetryableException
from training_door import KEY, connected

# The SDK does not close the connection over which it fetched its settings.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

STEP = types.AdamParams(learning_rate=0.01)
PROMPT = types.ModelInput.from_ints([5, 6, 7])
SHARP = types.SamplingParams(max_tokens=8, seed=1)


def step(trainer, number):
    tokens = [(number * 7 + place * 3) % 90 + 5 for place in range(12)]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={"target_tokens": tokens[1:]}
    )
    trainer.forward_backward([datum], "cross_entropy")
    return trainer.optim_step(STEP)


def digest(url, path):
    answer = httpx.post(f"{url}/api/v1/weights_info", json={"tinker_path": path}, headers={"X-API-Key": KEY})
    return answer.json()["digest"]


def fetched(url, request_id):
    body, headers = {"request_id": request_id}, {"X-API-Key": KEY}
    return httpx.post(f"{url}/api/v1/retrieve_future", json=body, headers=headers, timeout=60)


def sampled(client):
    return [(sequence.tokens, sequence.logprobs) for sequence in client.sample(PROMPT, 2, SHARP).result(60).sequences]


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("DOORSTEP_SERVE_MODEL", "tiny")
    monkeypatch.setenv("DOORSTEP_SERVE_THREADS", "1")
    server = Served(tmp_path, "")
    yield server
    server.kill()


def test_training_goes_on_bit_for_bit_after_kill_9(served):
    url = served.start()
    with connected(url) as service:
        undisturbed = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()
        for number in range(5):
            step(undisturbed, number).result()
        wanted = digest(url, undisturbed.save_state("end").result().path)
        trainer = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()
        for number in range(3):
            step(trainer, number).result()
        state = trainer.save_state("three").result().path
        answered = fetched(url, f"{trainer.model_id}:6")
        sampler = trainer.save_weights_and_get_sampling_client().result()
        for number in range(20):  # what is under way when the server dies
            last = step(trainer, number)
            sampler.sample(PROMPT, 4, SHARP)
        served.kill()
        served.start(port=httpx.URL(url).port)
        assert fetched(url, f"{trainer.model_id}:6").content == answered.content
        with pytest.raises((tinker.TinkerError, RetryableException)):
            last.result(60)
        again = service.create_training_client_from_state_with_optimizer(state).result()
        for number in range(3, 5):
            step(again, number).result()
        assert digest(url, again.save_state("end").result().path) == wanted


def test_a_killed_engine_is_started_again_and_the_rest_lives_on(served):
    url = served.start()
    with connected(url) as service:
        trainer = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()
        step(trainer, 0).result()
        state = trainer.save_state("one").result().path
        path = trainer.save_weights_for_sampler("named").result().path
        named = service.create_sampling_client(model_path=path).result()
        unnamed = trainer.save_weights_and_get_sampling_client().result()
        wanted = sampled(named)
        os.kill(served.engine(), signal.SIGKILL)
        with pytest.raises(tinker.TinkerError):
            step(trainer, 1).result(60)
        assert httpx.get(f"{url}/v1/models").status_code == 200
        wait_for(lambda: httpx.get(f"{url}/healthz").status_code == 200, 60)
        assert sampled(named) == wanted
        with pytest.raises(tinker.TinkerError, match="save them by name"):
            unnamed.sample(PROMPT, 2, SHARP).result(60)
        with pytest.raises(tinker.TinkerError, match=state):
            step(trainer, 2).result(60)
        again = service.create_training_client_from_state_with_optimizer(state).result()
        step(again, 1).result(60)
