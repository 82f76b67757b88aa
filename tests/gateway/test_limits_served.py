"""Limits through a real server and the real SDK: the same for every endpoint, for streams, and after a restart."""

import asyncio
from contextlib import contextmanager

import anthropic
import openai
import pytest
from gateway_parts import serving, settings_for, wait_for

from doorstep.config import ModelPrice, PriceSettings, ProviderSettings, WorkflowSettings
from doorstep.gateway.keys import Keys, Role, Terms
from doorstep.store import Store
from doorstep.types import Call

TEXT = "hello there " * 10
HELLO = [{"role": "user", "content": TEXT}]
PRICES = PriceSettings(models={f"fake/{name}": ModelPrice(input=100.0, output=100.0) for name in ("echo", "slow")})


@pytest.fixture
def keys(data):
    return Keys(data)


@pytest.fixture
def settings(data):
    workflows = {"orders": WorkflowSettings(models=("fake/echo",))}
    providers = {"fake": ProviderSettings(base_url="fake:")}
    return settings_for(data, model=None, providers=providers, prices=PRICES, workflows=workflows)


@pytest.fixture
def served(settings, keys):
    """Serve, once there are the keys of these terms; give the address and the keys."""

    @contextmanager
    def serve(*terms):
        secrets = [keys.create(Terms(name="agent", **each))[1] for each in terms]
        with serving(settings) as address:
            yield address, *secrets

    return serve


def client_of(address, secret):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=secret, max_retries=0)


def ask(client, **fields):
    return client.chat.completions.create(**{"model": "fake/echo", "messages": HELLO, "max_tokens": 50} | fields)


def test_a_viewer_reads_and_does_not_call(served):
    with served({"role": Role.VIEWER}) as (address, secret), client_of(address, secret) as client:
        assert client.models.list().object == "list"
        with pytest.raises(openai.PermissionDeniedError, match="reading only"):
            ask(client)


def test_too_many_requests_are_told_when_to_come_again(served):
    with served({"requests_per_minute": 2}) as (address, secret), client_of(address, secret) as client:
        ask(client)
        list(ask(client, stream=True))
        with pytest.raises(openai.RateLimitError) as refused:
            ask(client)
    assert 25 <= int(refused.value.response.headers["retry-after"]) <= 30


def test_a_model_that_is_not_allowed_is_refused_by_key_and_by_workflow(served):
    with served({"models": ("openai/*",)}, {"workflow": "orders"}) as (address, by_key, by_workflow):
        for secret, model in ((by_key, "fake/echo"), (by_workflow, "fake/slow")):
            with client_of(address, secret) as client, pytest.raises(openai.PermissionDeniedError, match="may not use"):
                ask(client, model=model)


def test_under_a_budget_an_unknown_price_is_refused(served):
    with (
        served({"month_microusd": 10**9}) as (address, secret),
        client_of(address, secret) as client,
        pytest.raises(openai.PermissionDeniedError, match="unknown_price"),
    ):
        ask(client, model="fake/thinking")


def chat(address, secret):
    with client_of(address, secret) as client:
        ask(client)


def stream(address, secret):
    with client_of(address, secret) as client:
        list(ask(client, stream=True, stream_options={"include_usage": True}))


def messages(address, secret):
    with anthropic.Anthropic(base_url=address, api_key=secret, max_retries=0) as client:
        client.messages.create(model="fake/echo", messages=HELLO, max_tokens=50)


def responses(address, secret):
    with client_of(address, secret) as client:
        client.responses.create(model="fake/echo", input=TEXT, max_output_tokens=50)


def embeddings(address, secret):
    with client_of(address, secret) as client:
        client.embeddings.create(model="fake/echo", input=TEXT)


CALLS = (chat, stream, messages, responses, embeddings)


def test_a_budget_holds_for_every_endpoint_and_over_a_restart(keys, settings):
    made = {call: keys.create(Terms(name="a", day_microusd=15_000)) for call in CALLS}
    with serving(settings) as address:
        refused = [spend_all(call, address, secret) for call, (_, secret) in made.items()]
    with serving(settings) as address:
        # The record is exact below a micro-dollar, where the running sum is rounded call by call: that may leave room
        # for a call or two of the cheapest.
        refused += [spend_all(call, address, secret, most=2) for call, (_, secret) in made.items()]
    assert [one for one in refused if not one.startswith("402") or "$0.015 a day" not in one] == []
    with Store.open(settings.record) as store:
        for key, _ in made.values():
            assert 0 < sum(one.cost_microusd for one in store.select(Call, key_id=key.key_id)) <= 15_000


def spend_all(call, address, secret, most=100):
    """Call until it is refused; return what was said."""
    for _ in range(most + 1):
        try:
            call(address, secret)
        except (openai.APIStatusError, anthropic.APIStatusError) as refused:
            return f"{refused.status_code} {refused}"
    raise AssertionError("nothing was refused")


def test_a_client_that_leaves_midway_has_spent_what_was_reserved(served, settings):
    with served({"day_microusd": 15_000}) as (address, secret), client_of(address, secret) as client:
        with ask(client, model="fake/slow", stream=True) as leaving:
            next(leaving)
        with Store.open(settings.record) as store:
            assert wait_for(lambda: store.select(Call))[0].status_code == 499
        assert spend_all(chat, address, secret, most=0).startswith("402")


def test_what_was_reserved_comes_back_when_the_provider_fails(served):
    with served({"day_microusd": 15_000}) as (address, secret), client_of(address, secret) as client:
        for _ in range(5):
            with pytest.raises(openai.BadRequestError):
                ask(client, messages=[])
        assert ask(client).choices


async def test_calls_at_once_spend_no_more_than_there_is(keys, settings):
    key, secret = keys.create(Terms(name="a", day_microusd=15_000))
    with serving(settings) as address:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=secret, max_retries=0) as client:
            found = await asyncio.gather(*(ask(client) for _ in range(60)), return_exceptions=True)
    assert {getattr(one, "status_code", 200) for one in found} == {200, 402}
    with Store.open(settings.record) as store:
        assert sum(one.cost_microusd for one in store.select(Call, key_id=key.key_id)) <= 15_000
