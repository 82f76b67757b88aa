"""The ledger: what a workflow cost, by purpose, and what the same work would have cost at list price.

Every figure is a sum of stored rows. What is missing from a sum is counted beside it, never guessed.
"""

from collections.abc import Sequence

import msgspec

from doorstep.store import Store
from doorstep.store.queries import Usage, run_counts, spending, usage
from doorstep.types import Mode
from doorstep.value.prices import list_price, price_version

WORK = (Mode.PROD, Mode.CANARY)  # the runs whose answers were used; the others are the price of getting there


class ListPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What the work's tokens would have cost on a hosted model. ``None``: the price book lacks it, or nothing is known.

    ``saving_microusd`` is that less what the same calls did cost, over the calls for which both are known; training and
    evaluation are not in it.
    """

    model: str  # ``provider/model``
    work_microusd: int | None
    per_1000_runs_microusd: int | None
    saving_microusd: int | None
    price_version: str


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow's money, micro-dollars. ``work`` is what was used; ``overhead`` is evaluation, shadow and training."""

    workflow: str
    runs: int  # of the work
    calls: int
    input_tokens: int
    output_tokens: int
    work_microusd: int
    overhead_microusd: int
    spent_microusd: dict[str, int]  # by scope: train, judge, human, …
    unpriced_calls: int  # of work and overhead, missing from the sums of money
    unmetered_calls: int  # of the work, missing from the sums of tokens
    list_prices: list[ListPrice]

    @property
    def total_microusd(self) -> int:
        """Everything that is known to have been spent."""
        return self.work_microusd + self.overhead_microusd + sum(self.spent_microusd.values())


def ledger(store: Store, workflow: str, models: Sequence[str] = (), since: int = 0) -> Ledger:
    """Sum up a workflow since a moment, and price its work on hosted ``models`` given as ``provider/model``."""
    rows = usage(store, workflow, since)
    work = [row for row in rows if row.mode in WORK]
    counts = run_counts(store, workflow, since)
    runs = sum(counts.get(mode, 0) for mode in WORK)
    return Ledger(
        workflow=workflow,
        runs=runs,
        calls=sum(row.calls for row in work),
        input_tokens=sum(row.input_tokens for row in work if row.metered),
        output_tokens=sum(row.output_tokens for row in work if row.metered),
        work_microusd=sum(row.cost_microusd for row in work),
        overhead_microusd=sum(row.cost_microusd for row in rows if row.mode not in WORK),
        spent_microusd={spend.scope: spend.amount_microusd for spend in spending(store, workflow, since)},
        unpriced_calls=sum(row.calls for row in rows if not row.priced),
        unmetered_calls=sum(row.calls for row in work if not row.metered),
        list_prices=[_on(model, work, runs) for model in models],
    )


def _on(model: str, work: Sequence[Usage], runs: int) -> ListPrice:
    metered = [row for row in work if row.metered]
    known = [row for row in metered if row.priced]
    amount, comparable = _list_price(model, metered), _list_price(model, known)
    return ListPrice(
        model=model,
        work_microusd=amount,
        per_1000_runs_microusd=None if amount is None or not runs else round(amount * 1000 / runs),
        saving_microusd=None if comparable is None else comparable - sum(row.cost_microusd for row in known),
        price_version=price_version(),
    )


def _list_price(model: str, rows: Sequence[Usage]) -> int | None:
    provider, _, name = model.partition("/")
    calls = sum(row.calls for row in rows)
    tokens = sum(row.input_tokens for row in rows), sum(row.output_tokens for row in rows)
    return list_price(provider, name, *tokens, calls=calls) if calls else None
