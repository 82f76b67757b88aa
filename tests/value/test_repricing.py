"""Prices that are known later correct the sums, never the calls."""

from doorstep.config import ModelPrice, PriceSettings
from doorstep.store.queries import daily_costs
from doorstep.types import Call, Cost, Mode, Run, RunStatus
from doorstep.value.ledger import ledger
from doorstep.value.repricing import reprice

OWN = PriceSettings(models={"house/small": ModelPrice(input=1.0, output=2.0)})


def run(run_id="run_1"):
    return Run(
        run_id=run_id, workflow="orders", variant="base", mode=Mode.PROD, task_id="t", task_digest="d",
        status=RunStatus.OK, started_us=1, ended_us=2,
    )  # fmt: skip


def test_calls_whose_price_becomes_known_are_counted(store, bought):
    store.add(run())
    bought("house/small", 10)
    before = ledger(store, "orders")
    done = reprice(store, OWN)
    after = ledger(store, "orders")
    assert (done.calls, done.corrected, done.change_microusd, done.unknown) == (10, 10, 12_000, 0)
    assert (before.unpriced_calls, before.work_microusd) == (10, 0)
    assert (after.unpriced_calls, after.work_microusd, after.spent_microusd) == (0, 12_000, {})


def test_a_new_price_corrects_the_sum_and_leaves_the_calls(store, bought):
    calls = bought("house/small", 10, prices=OWN)
    reprice(store, PriceSettings(models={"house/small": ModelPrice(input=0.5, output=2.0)}))
    assert store.select(Call) == calls
    assert {cost.amount_microusd for cost in store.select(Cost)} == {-500}
    assert [row.cost_microusd for row in daily_costs(store, "house", 0, 2**62)] == [7_000]


def test_pricing_again_at_the_same_prices_changes_nothing(store, bought):
    tiny = {"input_tokens": 1, "output_tokens": 1}
    half = PriceSettings(models={"house/small": ModelPrice(input=0.3, output=0.4)})
    bought("house/small", 101, prices=half, **tiny)
    assert reprice(store, half).corrected == 0
    reprice(store, OWN)
    assert reprice(store, OWN).corrected == 0


def test_small_corrections_add_up_to_the_exact_sum(store, bought):
    cheap = PriceSettings(models={"house/small": ModelPrice(input=0.1, output=0.0)})
    dear = PriceSettings(models={"house/small": ModelPrice(input=0.3, output=0.0)})
    bought("house/small", 1000, prices=cheap, input_tokens=1, output_tokens=0)
    reprice(store, dear)
    assert [row.cost_microusd for row in daily_costs(store, "house", 0, 2**62)] == [300]


def test_repricing_can_begin_at_a_day_and_leaves_our_own_calls(store, bought):
    bought("house/small", 3)
    (later,) = bought("house/small", day=1)
    bought("local/tiny", day=1)
    assert reprice(store, OWN, since=later.started_us).calls == 1
    assert [cost.ref for cost in store.select(Cost)] == [later.call_id]


def test_what_is_still_unknown_is_counted(store, bought):
    bought("house/large", 2)
    assert reprice(store, OWN).unknown == 2
