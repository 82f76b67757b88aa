"""The ledger sums stored rows, says what is missing, and claims no saving that it cannot show."""

import pytest

from doorstep.store import Store
from doorstep.types import Call, Cost, Mode, Run, RunStatus
from doorstep.value.breakeven import break_even
from doorstep.value.ledger import ledger

MINI = "openai/gpt-5-mini"


@pytest.fixture
def store(store: Store) -> Store:
    for i in range(10):
        store.add(*worked(f"prod_{i}", Mode.PROD, cost=2))
    store.add(*worked("eval_0", Mode.EVAL, cost=5), *worked("other", Mode.PROD, cost=9, workflow="returns"))
    store.add(spent("sft", 3000), spent("rl", 4000))
    return store


def worked(run_id, mode, *, cost, workflow="orders", at_us=100, tokens=1000):
    run = Run(
        run_id=run_id,
        workflow=workflow,
        variant="rl",
        mode=mode,
        task_id="t",
        task_digest="d",
        status=RunStatus.OK,
        started_us=at_us,
        ended_us=at_us + 1,
    )
    call = Call(
        call_id=f"call_{run_id}",
        run_id=run_id,
        dialect="openai.chat",
        requested_model="orders",
        served_model="tiny",
        provider="local",
        started_us=at_us,
        ended_us=at_us + 1,
        input_tokens=tokens,
        output_tokens=None if tokens is None else 100,
        cost_microusd=cost,
    )
    return run, call


def spent(name, amount):
    return Cost(
        cost_id=name,
        scope="train",
        ref="model_1",
        workflow="orders",
        quantity=1.0,
        unit="cpu_second",
        amount_microusd=amount,
        basis="estimated",
        at_us=50,
    )


def test_the_sums_are_those_of_the_rows(store):
    book = ledger(store, "orders")
    assert (book.runs, book.calls, book.input_tokens, book.output_tokens) == (10, 10, 10_000, 1000)
    assert (book.work_microusd, book.overhead_microusd, book.spent_microusd) == (20, 5, {"train": 7000})
    assert (book.total_microusd, book.unpriced_calls, book.unmetered_calls) == (7025, 0, 0)


def test_the_same_tokens_at_list_price(store):
    (hosted,) = ledger(store, "orders", [MINI]).list_prices
    assert (hosted.work_microusd, hosted.per_1000_runs_microusd, hosted.saving_microusd) == (4500, 450_000, 4480)


def test_an_unknown_model_has_no_list_price(store):
    (hosted,) = ledger(store, "orders", ["nobody/knows"]).list_prices
    assert (hosted.work_microusd, hosted.saving_microusd) == (None, None)


@pytest.mark.parametrize(("cost", "tokens", "more"), [(None, 1000, 450), (2, None, 0)])
def test_a_saving_is_claimed_only_over_calls_that_are_known(store, cost, tokens, more):
    store.add(*worked("unknown", Mode.PROD, cost=cost, tokens=tokens))
    book = ledger(store, "orders", [MINI])
    assert (book.unpriced_calls, book.unmetered_calls) == (int(cost is None), int(tokens is None))
    assert (book.list_prices[0].work_microusd, book.list_prices[0].saving_microusd) == (4500 + more, 4480)


def test_a_ledger_can_begin_at_a_moment(store):
    store.add(*worked("later", Mode.PROD, cost=1, at_us=200))
    book = ledger(store, "orders", since=150)
    assert (book.runs, book.work_microusd, book.spent_microusd) == (1, 1, {})


def test_a_workflow_without_rows_has_zero_runs_and_no_list_price(store):
    book = ledger(store, "nothing", [MINI])
    assert (book.runs, book.total_microusd, book.list_prices[0].work_microusd) == (0, 0, None)


def test_break_even_is_spending_over_saving():
    even = break_even(7000, incumbent_per_run_microusd=450.0, own_per_run_microusd=2.0)
    assert (even.saving_per_run_microusd, even.runs, even.why) == (448.0, 16, None)


@pytest.mark.parametrize(
    ("incumbent", "own", "why"),
    [(1.0, 1.0, "saves nothing"), (1.0, 2.0, "saves nothing"), (None, 1.0, "the incumbent is"), (1.0, None, "our own")],
)
def test_without_a_saving_there_is_no_break_even(incumbent, own, why):
    even = break_even(7000, incumbent, own)
    assert even.runs is None
    assert why in even.why
