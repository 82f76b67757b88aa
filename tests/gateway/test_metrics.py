"""What is counted of calls, and that a client cannot make it grow."""

import time

import pytest

from doorstep.gateway.capture import Attempt
from doorstep.gateway.histogram import TOKENS, Histogram
from doorstep.gateway.metrics import MOST_SERIES, Metrics
from doorstep.gateway.usage import Meter
from doorstep.store import Store
from doorstep.types import Call


def failed(provider: str, model: str, status: int) -> Attempt:
    return Attempt(provider=provider, model=model, started_us=0, ended_us=1, status=status)


def call(number: int, **changes) -> Call:
    values = {
        "call_id": f"call_{number}",
        "run_id": None,
        "dialect": "openai.chat",
        "requested_model": "openai/gpt",
        "served_model": "gpt",
        "provider": "openai",
        "started_us": 1,
        "ended_us": 2,
        "input_tokens": 100,
        "output_tokens": 5,
        "cost_microusd": 70,
    }
    return Call(**(values | changes))


def test_a_value_falls_under_the_first_bound_that_holds_it():
    histogram = Histogram((1, 10))
    for value in (1, 2, 10, 11):
        histogram.add(value)
    assert (histogram.counts, histogram.sum, histogram.count) == ([1, 2, 1], 24, 4)


def test_calls_are_counted_by_whom_they_went_to_and_how_they_ended():
    metrics = Metrics()
    metrics.count("openai.chat", "openai", "gpt", 200, 0.5, 0.1)
    metrics.count("openai.chat", "openai", "gpt", 200, 0.001, 0.001, cached=True)
    metrics.count("openai.chat", "openai", "gpt", 503, 0.5)
    (series,) = metrics.series.values()
    assert series.statuses == {200: 2, 503: 1}
    assert (series.seconds.count, series.first_byte.count, series.cached) == (3, 2, 1)


@pytest.mark.parametrize("status", [200, 404])
def test_any_number_of_names_opens_a_bounded_number_of_series(status):
    metrics = Metrics()
    for number in range(3 * MOST_SERIES):
        metrics.count("openai.chat", "openai", f"made-up-{number}", status, 0.1)
    assert len(metrics.series) <= MOST_SERIES + 1
    assert sum(series.statuses[status] for series in metrics.series.values()) == 3 * MOST_SERIES


def test_names_that_no_provider_knows_leave_the_series_to_those_that_do():
    metrics = Metrics()
    for number in range(3 * MOST_SERIES):
        metrics.count("openai.chat", "openai", f"made-up-{number}", 404, 0.1)
    metrics.count("openai.chat", "openai", "gpt", 200, 0.1)
    assert metrics.series["openai.chat", "openai", "gpt"].statuses == {200: 1}


def test_the_same_again_is_a_retry_and_another_a_fallback():
    metrics = Metrics()
    metrics.count_tries([failed("a", "m", 503), failed("a", "m", 0), failed("b", "m", 429)], ("c", "m"))
    assert metrics.failed == {("a", 503): 1, ("a", 0): 1, ("b", 429): 1}
    assert (metrics.retries, metrics.fallbacks) == ({"a": 1}, {("a", "b"): 1, ("b", "c"): 1})


def test_a_last_try_that_failed_goes_to_nobody():
    metrics = Metrics()
    metrics.count_tries([failed("a", "m", 503)], None)
    assert (metrics.failed, metrics.retries, metrics.fallbacks) == ({("a", 503): 1}, {}, {})


def test_counting_costs_a_call_little():
    metrics, calls = Metrics(), 20_000
    best = min(_seconds(metrics, calls) for _ in range(5))
    assert best / calls < 5e-6  # 0.4 µs on an idle core; this one may be busy


def _seconds(metrics: Metrics, calls: int) -> float:
    begun = time.perf_counter()
    for _ in range(calls):
        metrics.count("openai.chat", "openai", "gpt", 200, 0.3, 0.1)
    return time.perf_counter() - begun


def test_what_calls_used_comes_from_the_record(where):
    with Store.open(where) as store:
        store.add(call(0))
        meter = Meter(store)
        store.add(
            call(1), call(2, input_tokens=2000, cached_tokens=50), call(3, output_tokens=None, cost_microusd=None)
        )
        meter.read()
        (used,) = meter.used.values()
        assert (used.input.count, used.input.sum, used.output.count) == (3, 2200, 2)
        assert used.input.counts[TOKENS.index(4096)] == 1
        assert (used.cached_tokens, used.cost_microusd, used.unpriced) == (50, 140, 1)


def test_each_look_adds_only_what_is_new(where):
    with Store.open(where) as store:
        meter = Meter(store)
        store.add(call(1))
        meter.read()
        meter.read()
        store.add(call(2, provider="other"))
        meter.read()
        assert [used.cost_microusd for used in meter.used.values()] == [70, 70]
