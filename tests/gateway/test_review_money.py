"""Money and answers that could go to the wrong one: after a crash, in the cache, among retries."""

import httpx
import pytest
from captures import capture
from gateway_parts import serving, settings_for

from doorstep import ids
from doorstep.config import ModelPrice, PriceSettings, ProviderSettings
from doorstep.gateway.capture import Capture
from doorstep.gateway.keys import Keys, Terms
from doorstep.gateway.segments import Writer

HELLO = [{"role": "user", "content": "hello"}]
ANSWER = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":9}}'


@pytest.fixture
def settings(data):
    return settings_for(
        data,
        model=None,
        providers={"fake": ProviderSettings(base_url="fake:")},
        prices=PriceSettings(models={"fake/echo": ModelPrice(input=100.0, output=100.0)}),
    )


def left_behind(data, **changes):
    """Leave a call as a process does that was killed."""
    (data / "captures").mkdir(parents=True)
    writer = Writer(data / "captures", ids.new_id("seg"))
    now = ids.now_us()
    made: Capture = capture(
        call_id=ids.new_id("call"), provider="fake", served_model="echo", trace=None,
        started_us=now, first_us=now, ended_us=now, response=ANSWER, **changes,
    )  # fmt: skip
    writer.append(made)
    writer.close()


def test_what_a_killed_server_had_not_recorded_counts_in_the_budget(data, settings):
    key, secret = Keys(data).create(Terms(name="a", day_microusd=4_000))
    left_behind(data, key_id=key.key_id)
    with serving(settings) as address:
        body = {"model": "fake/echo", "messages": HELLO, "max_tokens": 10}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, headers={"x-api-key": secret}, trust_env=False)
    assert answer.status_code == 402


# Whose answer it is


def generate(address, action, model="fake/echo", text="hello", **headers):
    body = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
    url = f"{address}/v1beta/models/{model}:{action}"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(url, json=body, headers=names, trust_env=False)


def test_a_kept_answer_of_gemini_comes_in_the_form_that_is_asked_for(settings):
    with serving(settings) as address:
        actions = "streamGenerateContent?alt=sse", "streamGenerateContent", "generateContent"
        for _ in range(2):
            found = [generate(address, action, x_doorstep_cache="on").text.lstrip()[:1] for action in actions]
            assert found == ["d", "[", "{"]  # data: …, a list, an object


def test_a_repeated_key_of_gemini_at_another_model_is_another_call(settings):
    with serving(settings) as address:
        answers = [
            generate(address, "generateContent", model=f"fake/{model}", idempotency_key="one")
            for model in ("echo", "tools", "echo")
        ]
        calls = [answer.headers["x-doorstep-call-id"] for answer in answers]
    assert calls[0] == calls[2]
    assert calls[0] != calls[1]
