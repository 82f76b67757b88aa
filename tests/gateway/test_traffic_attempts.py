"""Whom a call asks next: the policy of tries, by a clock that the tests move."""

import datetime
from collections import Counter
from email.utils import format_datetime

import pytest
from clocks import Clock
from hypothesis import given
from hypothesis import strategies as st

from doorstep.config import TrafficSettings
from doorstep.errors import EngineUnavailable, ProviderError
from doorstep.gateway.models import Plan, Target
from doorstep.gateway.providers.base import Key
from doorstep.gateway.traffic import GiveUp, Traffic, Try, Wait

WALL = 1_800_000_000.0


class Named:
    """A provider by its name and keys; nobody asks it."""

    def __init__(self, name, *keys):
        self.name = name
        self.keys = tuple(Key(label, "secret") for label in keys)


ONE = Target(Named("one"), "m")
TWO = Target(Named("two"), "m")
KEYED = Target(Named("keyed", "k0", "k1", "k2"), "m")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def traffic(clock):
    return Traffic(clock, lambda: WALL, lambda: 0.0)


def plan(*targets, fallback=(), weights=None, **policy):
    weights = weights or (1.0,) * len(targets)
    return Plan(targets=targets, weights=weights, fallback=fallback, policy=TrafficSettings(**policy))


class Call:
    """One call. ``play`` fails with the given statuses in turn, and returns what was done: targets and pauses."""

    def __init__(self, traffic, clock, of, run="run_1"):
        self.attempts = traffic.begin(of, "call_1", run)
        self.clock = clock

    def play(self, *failures):
        done = []
        for failure in failures:
            status, said, headers = failure if isinstance(failure, tuple) else (failure, "no", {})
            step = self._next(done)
            assert isinstance(step, Try)
            done.append(step.target.provider.name + (f":{step.key.label}" if step.key else ""))
            self.attempts.failed(step, ProviderError(said, status=status), headers)
        step = self._next(done)
        done.append(step.target.provider.name if isinstance(step, Try) else step.error.status)
        return done

    def _next(self, done):
        while isinstance(step := self.attempts.next(), Wait):
            done.append(step.seconds)
            self.clock.now += step.seconds
        return step


@pytest.fixture
def call(traffic, clock):
    return lambda *targets, run="run_1", **policy: Call(traffic, clock, plan(*targets, **policy), run)


def step_of(call):
    step = call.attempts.next()
    assert isinstance(step, Try)
    return step


# Failures


def test_passing_trouble_is_tried_again_after_doubling_pauses_and_then_elsewhere(call):
    done = call(ONE, fallback=(TWO,)).play(500, 503, 529)
    assert done == ["one", 0.5, "one", 1.0, "one", "two"]


@pytest.mark.parametrize("status", [0, 408, 409, 500, 502, 503, 529])
def test_trouble_on_the_way_and_upstream_is_passing(call, status):
    assert call(ONE).play(status) == ["one", 0.5, "one"]


@pytest.mark.parametrize("status", [400, 404, 405, 413, 422, 451])
def test_a_request_at_fault_is_never_sent_again(call, status):
    assert call(ONE, fallback=(TWO,)).play(status) == ["one", status]


def test_the_last_upstreams_error_is_what_the_client_gets(call):
    assert call(ONE, TWO, retries=0).play(500, 502)[-1] == 502


def test_chance_shortens_a_pause_by_up_to_half(clock):
    traffic = Traffic(clock, chance=lambda: 1.0)
    assert Call(traffic, clock, plan(ONE)).play(500) == ["one", 0.25, "one"]


def test_pauses_do_not_grow_past_their_limit(call):
    done = call(ONE, retries=4, backoff_s=3).play(500, 500, 500, 500)
    assert [step for step in done if isinstance(step, float)] == [3.0, 6.0, 8.0, 8.0]


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "0"}, 0.5),  # no sooner than our own pause
        ({"retry-after": "soon"}, 0.5),
        ({"retry-after": "nan"}, 0.5),
        ({"retry-after": "-7"}, 0.5),
    ],
)
def test_an_upstream_says_how_long_to_wait(call, headers, pause):
    assert call(ONE).play((503, "no", headers)) == ["one", pause, "one"]


def test_an_error_can_say_itself_when_to_come_back(call):
    one = call(ONE)
    one.attempts.failed(step_of(one), ProviderError("no", status=503, retry_after_s=3.0))
    assert one.attempts.next() == Wait(3.0)


def test_an_upstream_says_until_when_to_wait(call):
    later = datetime.datetime.fromtimestamp(WALL + 4, datetime.UTC)
    header = {"retry-after": format_datetime(later, usegmt=True)}
    assert call(ONE).play((503, "no", header)) == ["one", 4.0, "one"]


def test_a_wait_past_the_budget_of_time_is_not_begun(call):
    far = {"retry-after": "60"}
    assert call(ONE, fallback=(TWO,)).play((503, "no", far)) == ["one", "two"]
    assert call(TWO).play((503, "no", far)) == ["two", 503]


def test_the_budget_of_attempts_counts_all_targets(call):
    assert call(ONE, fallback=(TWO, KEYED), attempts=4).play(500, 500, 500, 500)[-2:] == ["two", 500]


def test_after_the_budget_of_time_only_the_next_target_is_asked(call, clock):
    slow = call(ONE, fallback=(TWO,), budget_s=10)
    for target in (ONE, TWO):
        step = step_of(slow)
        assert step.target is target
        clock.now += 11
        slow.attempts.failed(step, ProviderError("no", status=500))
    assert isinstance(slow.attempts.next(), GiveUp)


def test_what_is_too_long_for_one_model_goes_to_a_fallback(call):
    said = (400, '{"error":{"code":"context_length_exceeded"}}', {})
    assert call(ONE, fallback=(TWO,)).play(said) == ["one", "two"]
    assert call(ONE).play(said) == ["one", 400]


def test_what_took_too_long_is_not_asked_of_the_same_target_while_there_is_another(call):
    assert call(ONE, fallback=(TWO,)).play(504, 504) == ["one", "two", 0.5, "two"]


def test_only_a_target_with_another_after_it_is_watched_for_its_first_chunk(call):
    guarded = call(ONE, fallback=(TWO,), first_chunk_s=2)
    first = step_of(guarded)
    guarded.attempts.failed(first, ProviderError("slow", status=504))
    assert (first.first_chunk_s, step_of(guarded).first_chunk_s) == (2.0, None)


def test_our_own_engine_is_not_asked_again_while_it_is_away(call, traffic):
    local = call(ONE, fallback=(TWO,))
    local.attempts.failed(step_of(local), EngineUnavailable("it has ended"))
    assert step_of(local).target is TWO
    alone = call(ONE)
    alone.attempts.failed(step_of(alone), EngineUnavailable("it has ended"))
    assert isinstance(alone.attempts.next().error, EngineUnavailable)


# Keys


def keys_of(done):
    return [step.partition(":")[2] for step in done if isinstance(step, str) and ":" in step]


def test_a_busy_key_gives_way_to_the_next_at_once(call):
    done = call(KEYED).play(429, 429)
    assert len(set(keys_of(done))) == 2
    assert len(done) == 3  # no pause


def test_when_all_keys_are_busy_the_soonest_is_waited_for(call):
    busy = [(429, "no", {"retry-after": after}) for after in ("9", "3", "5")]
    done = call(KEYED).play(*busy, 400)
    assert done[3] == 3.0
    assert done[4] == done[1]


def test_a_busy_provider_that_asks_for_no_pause_gets_one(call):
    at_once = (429, "no", {"retry-after": "0"})
    assert call(ONE).play(at_once, at_once, at_once) == ["one", 1.0, "one", 2.0, "one", 429]


def test_a_busy_provider_is_not_waited_for_while_there_is_another(call):
    assert call(ONE, fallback=(TWO,)).play((429, "no", {"retry-after": "3"})) == ["one", "two"]


def test_a_busy_key_rests_for_other_calls_as_well(call):
    limit = (429, "no", {"retry-after": "20"})
    assert call(ONE, retries=0).play(limit) == ["one", 429]
    assert call(ONE).play(400)[:2] == [20.0, "one"]


def test_a_rest_longer_than_the_budget_is_told_to_the_client_at_once(call):
    call(ONE).play((429, "tokens per minute", {"retry-after": "90"}))
    error = call(ONE).attempts.next().error
    assert (error.status, error.retry_after_s) == (429, 90.0)
    assert "tokens per minute" in str(error)


def test_a_busy_key_rests_for_its_model_alone(call):
    call(ONE).play((429, "no", {"retry-after": "90"}))
    assert call(Target(ONE.provider, "other")).play() == ["one"]


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_is_out_and_rests(call, clock, status):
    first = keys_of(call(KEYED).play(status, 400))[0]
    again = keys_of(call(KEYED).play(429, 400))
    assert first not in again
    clock.now += 61
    assert keys_of(call(KEYED).play(400)) == [first]


def test_an_empty_account_is_no_busy_key(call):
    empty = (429, '{"error":{"code":"insufficient_quota"}}', {})
    assert call(ONE).play(empty) == ["one", 429]


def test_keys_that_rest_are_shown_by_their_labels(call, traffic):
    call(KEYED).play((429, "per minute", {"retry-after": "7"}), 400)
    [rest] = traffic.resting()["keyed"]
    assert (rest.key in ("k0", "k1", "k2"), rest.model, rest.seconds) == (True, "m", 7.0)
    assert "per minute" in rest.why


def test_when_no_key_is_accepted_the_upstreams_word_counts(call):
    assert call(KEYED).play(401, 401, 401)[-1] == 401


def test_a_success_ends_what_is_held_against_a_key(call, traffic, clock):
    busy = call(ONE)
    busy.play(429)
    assert traffic.resting() == {}  # it was waited for
    busy.attempts.succeeded(Try(ONE, None, 0, None))
    assert call(ONE).play(429)[1] == 1.0  # and begins with the shortest rest again


def test_calls_of_a_run_begin_with_the_same_key_and_runs_share_the_keys(call):
    begun = Counter(step_of(call(KEYED, run=f"run_{i // 2}")).key.label for i in range(600))
    assert set(begun) == {"k0", "k1", "k2"}
    assert all(count % 2 == 0 and count > 120 for count in begun.values())


# Circuits


def fail(call, times, **policy):
    for _ in range(times):
        call(ONE, retries=0, **policy).play(500)


def test_failures_in_a_row_open_the_circuit(call, traffic):
    fail(call, 4)
    assert call(ONE).play() == ["one"]
    fail(call, 1)
    assert call(ONE).play() == [503]
    assert call(ONE, fallback=(TWO,)).play() == ["two"]
    [shown] = traffic.shown()
    assert (shown.provider, shown.model, shown.state, shown.failures, shown.seconds) == ("one", "m", "open", 5, 5.0)


def test_an_open_circuit_says_when_to_come_again(call):
    fail(call, 5)
    error = call(ONE).attempts.next().error
    assert (error.status, error.retry_after_s) == (503, 5.0)
    assert "one/m" in str(error)


def test_one_probe_goes_through_a_half_open_circuit_and_closes_it(call, traffic, clock):
    fail(call, 5)
    clock.now += 5
    probe = call(ONE)
    tried = step_of(probe)
    assert call(ONE).play() == [503]
    probe.attempts.succeeded(tried)
    assert call(ONE).play() == ["one"]
    assert traffic.shown() == []


def test_a_failed_probe_opens_the_circuit_for_twice_as_long(call, traffic, clock):
    fail(call, 5)
    clock.now += 5
    fail(call, 1)
    assert traffic.shown()[0].seconds == 10.0


def test_a_probe_that_is_never_heard_of_does_not_keep_the_circuit_open(call, clock):
    fail(call, 5)
    clock.now += 5
    step_of(call(ONE))
    clock.now += 5
    assert call(ONE).play() == ["one"]


def test_a_bad_rate_of_failures_opens_the_circuit(call, traffic):
    for number in range(20):
        mixed = call(ONE, retries=0)
        step = step_of(mixed)
        if number % 2:
            mixed.attempts.succeeded(step)
        else:
            mixed.attempts.failed(step, ProviderError("no", status=500))
    call(ONE, retries=0).play(500)
    assert traffic.shown()[0].state == "open"


def test_a_request_at_fault_says_nothing_against_the_model(call, traffic):
    for _ in range(9):
        call(ONE).play(400)
    assert traffic.shown() == []


def test_a_model_that_recovers_leaves_nothing_behind(call, traffic, clock):
    fail(call, 3)
    for _ in range(2):
        well = call(ONE)
        well.attempts.succeeded(step_of(well))
        clock.now += 31
    assert traffic.shown() == []


def test_names_of_models_do_not_fill_the_memory(call, traffic):
    for number in range(1100):
        call(Target(ONE.provider, f"m{number}"), retries=0).play(500)
        call(Target(TWO.provider, f"m{number}"), retries=0).play(429)
    assert len(traffic.shown()) <= 1000
    assert len(traffic.resting()["two"]) <= 1000


# Splits


def first_of(traffic, of, run):
    return traffic.begin(of, "call_1", run).targets[0]


def test_a_split_follows_the_weights(traffic):
    of = plan(ONE, TWO, weights=(9.0, 1.0))
    counts = Counter(first_of(traffic, of, f"run_{number}").provider.name for number in range(5000))
    assert 4350 < counts["one"] < 4650


def test_all_calls_of_a_run_go_to_one_target(traffic):
    of = plan(ONE, TWO)
    for number in range(50):
        orders = {traffic.begin(of, f"call_{call}", f"run_{number}").targets for call in range(5)}
        assert len(orders) == 1


def test_calls_outside_runs_are_split_one_by_one(traffic):
    of = plan(ONE, TWO)
    assert {traffic.begin(of, f"call_{number}", None).targets[0] for number in range(50)} == {ONE, TWO}


def test_a_changed_weight_moves_runs_in_one_direction_only(traffic):
    before, after = plan(ONE, TWO, weights=(1.0, 1.0)), plan(ONE, TWO, weights=(3.0, 1.0))
    moves = {(first_of(traffic, before, f"r{n}"), first_of(traffic, after, f"r{n}")) for n in range(500)}
    assert moves == {(ONE, ONE), (TWO, TWO), (TWO, ONE)}


def test_the_other_targets_come_before_the_fallbacks(call):
    done = call(ONE, TWO, fallback=(KEYED,), retries=0).play(500, 500)
    assert sorted(done[:2]) == ["one", "two"]
    assert done[2] == "keyed"


# Whatever happens


@given(st.lists(st.sampled_from([0, 200, 400, 401, 408, 429, 500, 504, 529]), max_size=40), st.integers(0, 5))
def test_every_call_comes_to_an_end_within_its_budgets(statuses, retries):
    clock = Clock()
    of = plan(ONE, KEYED, fallback=(TWO,), retries=retries, attempts=7, budget_s=20)
    attempts, tries, begun = Traffic(clock).begin(of, "call_1", None), 0, clock.now
    while not isinstance(step := attempts.next(), GiveUp):
        if isinstance(step, Wait):
            assert step.seconds > 0
            clock.now += step.seconds
            assert clock.now - begun <= 25  # a wait for a key is up to a quarter longer than its rest
            continue
        tries += 1
        assert tries <= 7
        status = statuses.pop() if statuses else 500
        if status == 200:
            attempts.succeeded(step)
            return
        attempts.failed(step, ProviderError("no", status=status))
    assert isinstance(step.error, ProviderError)


def test_a_key_that_was_refused_is_shown_with_the_words_and_not_the_body(call, traffic):
    call(KEYED).play((401, '{"error": {"message": "no such key", "code": "invalid_api_key"}}', {}))
    [rest] = traffic.resting()["keyed"]
    assert "no such key" in rest.why
    assert "{" not in rest.why
