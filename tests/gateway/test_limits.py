"""Limits: what is refused, when it may be tried again, and that money is counted once, whatever happens."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorstep.config import LimitSettings, WorkflowSettings
from doorstep.errors import LimitReached, StoreError
from doorstep.gateway.keys import LOCAL, Allowance, Caller, Role
from doorstep.gateway.limits import OUTPUT_TOKENS, Bucket, Limits, estimate
from doorstep.store import Store
from doorstep.types import Call
from doorstep.value.prices import Rates, Step

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US


def at(text):
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)


NOON = at("2026-11-25 12:00")


class Clock:
    def __init__(self, now_us=NOON):
        self.now_us = now_us

    def __call__(self):
        return self.now_us


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limits(clock):
    return Limits(LimitSettings(), {}, clock)


def caller(key_id="key_1", workflow=None, role=Role.MEMBER, **allowance):
    return Caller(key_id=key_id, name="agent", role=role, workflow=workflow, allowance=Allowance(**allowance))


def admit(limits, who, tokens=100, microusd=10, model="openai/gpt-5-mini", workflow=None):
    return limits.admit(who, model, workflow, tokens, microusd)


def refusal(limits, who, **call):
    with pytest.raises(LimitReached) as refused:
        admit(limits, who, **call)
    return refused.value


@pytest.mark.parametrize(
    ("who", "limited"),
    [
        (LOCAL, False),
        (caller(), False),
        (caller(models=("openai/*",)), True),
        (caller(day_microusd=0), True),
        (caller(role=Role.VIEWER), True),
        (caller(workflow="orders"), True),
        (caller(workflow="other"), False),
    ],
)
def test_limits_tell_to_whom_they_apply(clock, who, limited):
    limits = Limits(LimitSettings(), {"orders": WorkflowSettings()}, clock)
    assert limits.apply_to(who, None) is limited


def test_a_viewer_may_not_call(limits):
    assert refusal(limits, caller(role=Role.VIEWER)).status == 403


def test_a_key_may_use_the_models_of_its_patterns_only(limits):
    who = caller(models=("openai/*", "fast"))
    assert admit(limits, who, model="openai/gpt-5-mini")
    assert admit(limits, who, model="fast")
    refused = refusal(limits, who, model="anthropic/claude-opus-5")
    assert (refused.status, refused.code, refused.retry_after_s) == (403, "model_not_allowed", None)
    assert "openai/*" in str(refused)


def test_requests_flow_in_evenly(limits, clock):
    who = caller(requests_per_minute=2)
    admit(limits, who)
    admit(limits, who)
    refused = refusal(limits, who)
    assert (refused.status, refused.retry_after_s) == (429, 30.0)
    clock.now_us += 30 * SECOND_US
    assert admit(limits, who)


def test_trying_again_when_it_was_said_helps(limits, clock):
    who = caller(requests_per_minute=7, tokens_per_minute=999)
    for _ in range(7):
        admit(limits, who, tokens=142).settle(142, 0)
    clock.now_us += round(refusal(limits, who, tokens=142).retry_after_s * SECOND_US)
    assert admit(limits, who, tokens=142)


def test_tokens_that_were_not_used_come_back(limits):
    who = caller(tokens_per_minute=1000)
    first = admit(limits, who, tokens=900)
    assert refusal(limits, who, tokens=900).retry_after_s == 48.0
    first.settle(100, 0)
    assert admit(limits, who, tokens=900)


def test_tokens_used_beyond_the_estimate_are_owed(limits):
    who = caller(tokens_per_minute=1000)
    admit(limits, who, tokens=100).settle(3000, 0)
    assert refusal(limits, who, tokens=1000).retry_after_s == 180.0


def test_a_call_larger_than_a_minute_waits_for_a_full_bucket(limits, clock):
    who = caller(tokens_per_minute=1000)
    picture = admit(limits, who, tokens=500_000)
    assert refusal(limits, who, tokens=1).status == 429
    picture.settle(800, 0)
    assert refusal(limits, who, tokens=500_000).retry_after_s == 48.0


def test_a_refused_call_takes_nothing(limits):
    who = caller(requests_per_minute=2, tokens_per_minute=1000, day_microusd=50)
    assert refusal(limits, who, microusd=51).status == 402
    assert admit(limits, who, tokens=500, microusd=25)
    assert admit(limits, who, tokens=500, microusd=25)


def test_money_is_reserved_while_a_call_is_under_way(limits):
    who = caller(day_microusd=100)
    under_way = admit(limits, who, microusd=60)
    refused = refusal(limits, who, microusd=60)
    assert (refused.status, refused.code, refused.retry_after_s) == (402, "budget_exceeded", 12 * 3600.0)
    assert "2026-11-26 00:00 UTC" in str(refused)
    under_way.settle(10, 5)
    assert admit(limits, who, microusd=95)


def test_what_a_call_cost_beyond_its_estimate_is_spent_all_the_same(limits):
    who = caller(day_microusd=100)
    admit(limits, who, microusd=10).settle(10, 150)
    assert refusal(limits, who, microusd=0).status == 402


def test_what_a_call_cost_is_taken_as_estimated_when_nobody_knows(limits):
    who = caller(day_microusd=100)
    admit(limits, who, microusd=60).settle(None, None)
    assert refusal(limits, who, microusd=41).status == 402
    assert admit(limits, who, microusd=40)


def test_a_reservation_ends_once(limits):
    who = caller(day_microusd=100)
    reservation = admit(limits, who, microusd=60)
    reservation.settle(10, 50)
    reservation.release()
    reservation.settle(10, 50)
    assert admit(limits, who, microusd=50)
    assert refusal(limits, who, microusd=1)


def test_a_new_day_has_new_money_and_the_month_goes_on(limits, clock):
    who = caller(day_microusd=100, month_microusd=150)
    admit(limits, who, microusd=100).settle(1, 100)
    clock.now_us = at("2026-11-26 00:00")
    assert admit(limits, who, microusd=50)
    refused = refusal(limits, who, microusd=1)
    assert "2026-12-01 00:00 UTC" in str(refused)
    clock.now_us = at("2026-12-01 00:00")
    assert admit(limits, who, microusd=100)


def test_a_call_over_midnight_belongs_to_the_day_it_began_in(limits, clock):
    who = caller(day_microusd=100, month_microusd=200)
    over_midnight = admit(limits, who, microusd=80)
    clock.now_us = at("2026-11-26 00:01")
    admit(limits, who, microusd=100).settle(1, 100)
    over_midnight.settle(1, 90)
    clock.now_us = at("2026-11-27 00:00")
    assert "$0.00001 is left" in str(refusal(limits, who, microusd=11))


def test_the_last_month_of_a_year_ends(limits, clock):
    clock.now_us = at("2026-12-31 23:59")
    who = caller(month_microusd=100)
    admit(limits, who, microusd=100)
    assert refusal(limits, who).retry_after_s == 60.0
    clock.now_us += MINUTE_US
    assert admit(limits, who)


def test_under_a_budget_an_unknown_price_is_refused(limits):
    refused = refusal(limits, caller(month_microusd=100), microusd=None)
    assert (refused.status, refused.code, refused.retry_after_s) == (403, "price_unknown", None)
    assert "unknown_price" in str(refused)
    assert admit(limits, caller(key_id="key_2", requests_per_minute=5), microusd=None)


def test_an_unknown_price_may_be_allowed(clock):
    limits = Limits(LimitSettings(unknown_price="allow"), {}, clock)
    who = caller(day_microusd=100)
    admit(limits, who, microusd=None).settle(10, 30)
    assert admit(limits, who, microusd=70)
    assert refusal(limits, who, microusd=1)


def test_a_workflow_s_limits_hold_for_all_its_keys_together(clock):
    limits = Limits(LimitSettings(), {"orders": WorkflowSettings(usd_per_day=0.0001)}, clock)
    admit(limits, caller("key_1", workflow="orders"), microusd=60)
    refused = refusal(limits, LOCAL, workflow="orders", microusd=60)
    assert (refused.status, "workflow orders" in str(refused)) == (402, True)
    assert admit(limits, LOCAL, workflow="other", microusd=60)


def test_a_key_of_a_workflow_cannot_name_another_one(clock):
    limits = Limits(LimitSettings(), {"orders": WorkflowSettings(models=("fast",))}, clock)
    assert refusal(limits, caller(workflow="orders"), workflow="other").code == "model_not_allowed"


def test_a_changed_limit_counts_at_once_with_what_was_spent_before_it(limits):
    admit(limits, caller(day_microusd=70), microusd=70).settle(1, 70)
    assert refusal(limits, caller(day_microusd=100), microusd=31).status == 402
    assert admit(limits, caller(day_microusd=101), microusd=31)


def test_another_key_s_change_fills_no_bucket(limits):
    admit(limits, caller(requests_per_minute=1))
    assert refusal(limits, caller(requests_per_minute=1))


async def test_two_hundred_calls_at_once_spend_no_more_than_there_is(limits):
    who, spent = caller(day_microusd=1000, requests_per_minute=150), []

    async def call(cost):
        try:
            reservation = admit(limits, who, microusd=10)
        except LimitReached as refused:
            return refused.status
        await asyncio.sleep(0)  # the others come in between
        reservation.settle(100, cost)
        spent.append(cost)
        return 200

    statuses = Counter(await asyncio.gather(*(call(cost % 11) for cost in range(200))))
    assert statuses == {200: 100, 402: 100}
    assert sum(spent) <= 1000
    assert refusal(limits, who, microusd=1001 - sum(spent)).status == 402
    assert admit(limits, who, microusd=1000 - sum(spent))


# After a restart


def stored_call(call_id, started_us, microusd, key_id="key_1", model="m"):
    return Call(
        call_id=call_id,
        run_id=None,
        dialect="openai.chat",
        requested_model=model,
        served_model="m",
        provider="openai",
        started_us=started_us,
        ended_us=started_us,
        cost_microusd=microusd,
        key_id=key_id,
    )


@pytest.fixture
def store(where):
    with Store.open(where) as opened:
        yield opened


def test_a_restart_keeps_what_the_day_and_the_month_have_spent(limits, store):
    store.add(
        stored_call("call_1", NOON, 30),
        stored_call("call_2", at("2026-11-01 00:00"), 50),
        stored_call("call_3", at("2026-10-31 23:59"), 1000),
        stored_call("call_4", NOON, 1000, key_id="key_2"),
        stored_call("call_5", NOON, None),
    )
    limits.restore(store, {})
    assert "$0.00007 is left" in str(refusal(limits, caller(day_microusd=100), microusd=71))
    assert "$0.00002 is left" in str(refusal(limits, caller(month_microusd=100), microusd=21))


def test_a_restart_keeps_what_a_workflow_has_spent_by_its_keys_and_by_its_name(store, clock):
    limits = Limits(LimitSettings(), {"orders": WorkflowSettings(usd_per_day=0.0001)}, clock)
    store.add(
        stored_call("call_1", NOON, 30, key_id=None, model="workflow/orders"),
        stored_call("call_2", NOON, 20, key_id="key_1", model="workflow/other"),
        stored_call("call_3", NOON, 40, key_id="key_2", model="orders"),
    )
    limits.restore(store, {"key_1": "orders", "key_2": None})
    assert "$0.00005 is left" in str(refusal(limits, LOCAL, workflow="orders", microusd=51))


def test_calls_that_the_store_did_not_have_at_the_start_can_be_booked(limits, store):
    store.add(stored_call("call_1", NOON, 10))
    limits.restore(store, {})
    limits.book("key_1", None, 50, NOON)
    assert refusal(limits, caller(day_microusd=100), microusd=41).status == 402


@pytest.fixture
async def following(limits, store):
    task = asyncio.create_task(limits.follow(store))
    yield
    task.cancel()


async def spent_of(limits, who):
    """Wait for what ``who`` had spent to be read: then it has nothing left."""
    for _ in range(500):
        try:
            admit(limits, who, microusd=1).release()
        except LimitReached as refused:
            return refused.status
        await asyncio.sleep(0.01)
    raise AssertionError("it has money left")


async def test_a_key_that_gets_a_budget_later_has_spent_what_it_had_spent(limits, store, clock, following):
    store.add(stored_call("call_1", NOON - 1, 100), stored_call("call_2", NOON - 1, 900, key_id="key_2"))
    assert not limits.apply_to(caller(), None)
    assert await spent_of(limits, caller(day_microusd=100)) == 402
    assert admit(limits, caller(day_microusd=101), microusd=1)


async def test_what_is_counted_here_is_not_counted_again_from_the_store(limits, store, clock, following):
    admit(limits, caller(day_microusd=100), microusd=60).settle(1, 60)
    store.add(stored_call("call_1", NOON, 60), stored_call("call_2", NOON - 1, 40))
    assert await spent_of(limits, caller(day_microusd=100)) == 402
    assert admit(limits, caller(day_microusd=101), microusd=1)


async def test_what_a_key_spends_without_limits_is_read_when_it_has_some_again(limits, store, clock, following):
    admit(limits, caller(day_microusd=100), microusd=10).settle(1, 10)
    limits.apply_to(caller(), None)
    store.add(stored_call("call_1", NOON, 10), stored_call("call_2", NOON + 1, 90))
    clock.now_us = NOON + 2
    assert await spent_of(limits, caller(day_microusd=100)) == 402


async def test_a_store_that_is_away_is_asked_again(limits, store, clock, monkeypatch):
    monkeypatch.setattr("doorstep.gateway.limits.AGAIN_S", 0.01)
    store.add(stored_call("call_1", NOON - 1, 100))
    task = asyncio.create_task(limits.follow(Away(store)))
    assert await spent_of(limits, caller(day_microusd=100)) == 402
    task.cancel()


class Away:
    """A store that cannot be read the first time."""

    def __init__(self, store):
        self._store = store
        self._asked = 0

    def rows(self, query):
        self._asked += 1
        if self._asked == 1:
            raise StoreError("locked")
        return self._store.rows(query)


# The estimate


def rates(**micro):
    return Rates(version="1", steps=[Step(-1, {name: Decimal(amount) for name, amount in micro.items()})])


TEXT = rates(input="0.25", output="2")


def test_an_estimate_is_of_the_bytes_and_of_the_longest_answer():
    assert estimate(4000, 100, TEXT) == (1101, round(1001 * 0.25 + 200))
    assert estimate(4000, None, TEXT).tokens == 1001 + OUTPUT_TOKENS


def test_an_estimate_counts_what_the_request_tells_of_other_units():
    assert estimate(4000, 0, rates(characters="15"), {"characters": 40.0}).microusd == 600


def test_what_only_the_answer_tells_is_not_reserved():
    assert estimate(4000, 0, rates(seconds="100")).microusd == 0


@pytest.mark.parametrize("most_output", [-(10**9), 10**400])
def test_what_a_request_says_of_its_length_makes_no_money(most_output):
    found = estimate(4000, most_output, TEXT)
    assert found.tokens >= 1001
    assert 0 < found.microusd <= 2_000_000_251


def test_without_a_price_only_the_tokens_are_known():
    assert estimate(4000, 100, None) == (1101, None)


# Properties

STEPS = st.lists(
    st.tuples(st.sampled_from(["admit", "settle", "release", "wait"]), st.integers(0, 60), st.integers(0, 100))
)


@given(STEPS)
def test_spent_and_reserved_never_exceed_the_budget(steps):
    clock = Clock()
    limits, who = Limits(LimitSettings(), {}, clock), caller(day_microusd=100)
    under_way, spent = [], 0
    for step, amount, share in steps:
        if step == "admit":
            try:
                under_way.append((admit(limits, who, microusd=amount), amount))
            except LimitReached:
                assert spent + sum(reserved for _, reserved in under_way) + amount > 100
        elif step != "wait" and under_way:
            reservation, reserved = under_way.pop(amount % len(under_way))
            cost = reserved * share // 100 if step == "settle" else 0
            reservation.settle(1, cost) if step == "settle" else reservation.release()
            spent += cost
        assert spent + sum(reserved for _, reserved in under_way) <= 100


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(0, 90 * SECOND_US), st.integers(0, 2000), st.integers(0, 2000))),
)
def test_no_call_that_waits_as_it_is_told_overdraws_a_bucket(per_minute, calls):
    bucket, now_us, used = Bucket(per_minute, NOON), NOON, 0
    for pause_us, wanted, came_to in calls:
        now_us += pause_us + bucket.wait_us(wanted, now_us + pause_us)
        assert bucket.wait_us(wanted, now_us) == 0
        taken = bucket.take(wanted)
        assert used + taken <= per_minute + per_minute * (now_us - NOON) / MINUTE_US
        bucket.correct(came_to - taken)
        used += came_to
