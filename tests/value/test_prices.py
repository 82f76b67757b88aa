"""Prices: the price book's for hosted models, CPU time for our own, and nothing where nothing is known."""

import socket
import sys

import msgspec
import pytest

from doorstep.types import Call
from doorstep.value.prices import UNKNOWN, CpuMeter, Pricer, list_price, price_version

CALL = Call(
    call_id="c",
    run_id="r",
    dialect="openai.chat",
    requested_model="openai/gpt-5-mini",
    served_model="gpt-5-mini",
    provider="openai",
    started_us=1_790_000_000_000_000,
    ended_us=1_790_000_002_000_000,
    input_tokens=1000,
    output_tokens=100,
)
OWN = msgspec.structs.replace(CALL, provider="local", served_model="tiny")


def test_a_hosted_call_is_priced_by_the_book():
    # $0.25 and $2 per million tokens in and out: openai.com/api/pricing
    assert Pricer().price(CALL) == (450, "priced", price_version())


@pytest.mark.parametrize("changes", [{"served_model": "nobody-knows"}, {"provider": "fake"}, {"output_tokens": None}])
def test_what_is_not_known_has_no_price(changes):
    assert Pricer().price(msgspec.structs.replace(CALL, **changes)) == UNKNOWN


def test_without_the_price_book_a_price_is_not_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert Pricer().price(CALL) == UNKNOWN


def test_prices_need_no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    assert list_price("anthropic", "claude-sonnet-4-5", 1_000_000, 0, calls=1000) == 3_000_000


def test_steps_in_the_price_are_those_of_one_call_not_of_the_sum():
    per_call = list_price("google", "gemini-2.5-pro", 1000, 100)
    assert list_price("google", "gemini-2.5-pro", 1_000_000, 100_000, calls=1000) == 1000 * per_call
    assert list_price("google", "gemini-2.5-pro", 1_000_000, 100_000) > 1000 * per_call


def test_own_calls_are_estimated_and_small_ones_add_up():
    pricer = Pricer(lambda call: 0.01, core_hour_usd=0.036)  # 0.1 micro-dollars a call
    prices = [pricer.price(OWN) for _ in range(1000)]
    assert 99 <= sum(price.microusd for price in prices) <= 100
    assert prices[0] == (0, "estimated", "core-hour $0.036")


def test_own_calls_without_a_meter_have_no_price():
    assert Pricer().price(OWN) == UNKNOWN


def test_the_meter_books_what_was_used_but_not_idle_time_or_training():
    clock = iter([10.0, 11.5, 100.0, 100.0])
    meter = CpuMeter(lambda: next(clock), cores=2)
    assert [meter(OWN), meter(OWN), meter(OWN)] == [1.5, 4.0, 0.0]  # two seconds on two cores at most
