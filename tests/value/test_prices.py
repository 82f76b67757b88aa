"""Prices: rates for hosted models, CPU time for our own, and nothing where nothing is known."""

import socket
import sys
from decimal import Decimal

import msgspec
import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot

from doorstep.config import ModelPrice, PriceSettings
from doorstep.types import Call
from doorstep.value.prices import FREE, UNKNOWN, PriceBook, Pricer, list_price, price_version

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


def call(model, **changes) -> Call:
    provider, _, name = model.partition("/")
    return msgspec.structs.replace(CALL, provider=provider, served_model=name, **changes)


def price(*calls, **settings):
    pricer = Pricer(PriceSettings(**settings))
    return [pricer.price(one) for one in calls][-1]


def test_a_hosted_call_is_priced_by_the_book():
    # $0.25 and $2 per million tokens in and out: openai.com/api/pricing
    assert price(CALL) == (450, "priced", price_version())


def test_cached_and_written_tokens_have_their_own_price():
    # $3, $0.30 read, $3.75 written, $15 out: claude.com/pricing
    sonnet = call("anthropic/claude-sonnet-4-5", cached_tokens=500, cache_write_tokens=400)
    assert price(sonnet).microusd == 100 * 3 + 500 * 0.3 + 400 * 3.75 + 100 * 15


def test_sound_has_its_own_price():
    # $2.50 and $10 for text, $32 and $64 for sound
    audio = call("openai/gpt-audio", input_audio_tokens=800, output_audio_tokens=60)
    assert price(audio).microusd == 200 * 2.5 + 800 * 32 + 40 * 10 + 60 * 64


def test_pictures_have_their_own_price():
    # $5 and $10 for text, $8 and $32 for pictures
    picture = call("openai/gpt-image-1.5", units={"images": 1, "input_image_tokens": 400, "output_image_tokens": 90})
    assert price(picture).microusd == 600 * 5 + 400 * 8 + 10 * 10 + 90 * 32


@pytest.mark.parametrize(
    ("model", "units", "microusd"),
    [
        ("openai/tts-1", {"characters": 1000}, 15_000),
        ("openai/whisper-1", {"seconds": 60}, 6_000),
        ("hume/octave-2", {"characters": 1000}, 150_000),
        ("google/imagen-4.0-generate-001", {"images": 2}, 80_000),
        ("google/veo-3.1-generate-preview", {"seconds_720p": 8}, 3_200_000),
    ],
)
def test_media_are_priced_by_their_units(model, units, microusd):
    media = call(model, input_tokens=None, output_tokens=None, units=units)
    assert price(media).microusd == microusd


def test_rates_are_exactly_those_of_the_book():
    counts = {"input_tokens": 300_000, "output_tokens": 500, "cached_tokens": 100, "cache_write_tokens": 50}
    theirs = Usage(input_tokens=300_000, output_tokens=500, cache_read_tokens=100, cache_write_tokens=50)
    book = PriceBook(PriceSettings())
    for provider in ("openai", "anthropic", "google", "deepseek", "mistral"):
        for model in next(one for one in get_snapshot().providers if one.id == provider).models:
            rates = book.rates(provider, model.id)
            if rates is None or not {"input", "output"} <= rates.steps[0].rates.keys():
                continue
            expected = calc_price(theirs, model.id, provider_id=provider).total_price * 1_000_000
            assert rates.cost(call("a/b", **counts)) == expected, model.id


def test_a_price_is_that_of_the_day_of_the_call():
    before, after = (call("openai/o3", started_us=at * 1_000_000) for at in (1_746_000_000, 1_756_000_000))
    assert (price(before).microusd, price(after).microusd) == (14_000, 2_800)  # $10 and $40 until June 2025, $2 and $8


def test_own_prices_of_the_settings_win():
    models = {"openai/gpt-5-mini": ModelPrice(input=1.0, output=10.0, requests=0.001)}
    amount, basis, version = price(CALL, models=models)
    assert (amount, basis, version.split()[0]) == (1000 + 1000 + 1000, "priced", "doorstep.toml")


@pytest.mark.parametrize(
    "changes",
    [
        {"served_model": "nobody-knows"},
        {"provider": "fake"},
        {"output_tokens": None},
        {"input_tokens": None},
        {"cached_tokens": 1001},
        {"status_code": 499, "output_tokens": None},
    ],
)
def test_what_is_not_known_has_no_price(changes):
    assert price(msgspec.structs.replace(CALL, **changes)) == UNKNOWN


@pytest.mark.parametrize("changes", [{"cached": True}, {"status_code": 429, "output_tokens": None}])
def test_nothing_is_paid_for_kept_answers_and_errors(changes):
    assert price(msgspec.structs.replace(CALL, **changes)) == FREE


def test_without_the_price_book_a_price_is_not_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "genai_prices.data_snapshot", None)
    assert price(CALL) == UNKNOWN


def test_prices_need_no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    assert list_price("anthropic", "claude-sonnet-4-5", 1_000_000, 0, calls=1000) == 3_000_000


def test_steps_in_the_price_are_those_of_one_call_not_of_the_sum():
    per_call = list_price("google", "gemini-2.5-pro", 1000, 100)
    assert list_price("google", "gemini-2.5-pro", 1_000_000, 100_000, calls=1000) == 1000 * per_call
    assert list_price("google", "gemini-2.5-pro", 1_000_000, 100_000) > 1000 * per_call


def test_small_calls_add_up_to_the_exact_sum():
    small = msgspec.structs.replace(CALL, input_tokens=1, output_tokens=0)  # a quarter of a micro-dollar
    pricer = Pricer(PriceSettings())
    assert sum(pricer.price(small).microusd for _ in range(1001)) == 250


def test_own_calls_are_estimated_from_their_cpu_time():
    pricer = Pricer(PriceSettings(core_hour_usd=0.036))  # a hundredth of a second is a tenth of a micro-dollar
    prices = [pricer.price(OWN, cpu_seconds=0.01) for _ in range(1000)]
    assert sum(one.microusd for one in prices) == 100
    assert prices[0] == (0, "estimated", "core-hour $0.036")


def test_own_calls_without_cpu_time_have_no_price():
    assert price(OWN) == UNKNOWN


def test_rates_of_a_model_are_for_estimates():
    rates = PriceBook(PriceSettings()).rates("openai", "gpt-5-mini")
    assert (rates.input, rates.output, rates.amount(CALL)) == (0.25, 2.0, 450)
    assert rates.cost(msgspec.structs.replace(CALL, input_tokens=1, output_tokens=0)) == Decimal("0.25")
    assert PriceBook(PriceSettings()).rates("fake", "small") is None
