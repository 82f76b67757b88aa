"""Repricing: what recorded calls cost by the prices known now. A call's row stays; what differs is a correction.

A correction is a ``Cost`` of scope ``reprice`` with the difference; the queries of the store add it to its call. Less
than a micro-dollar is owed to the next call of the model, so the corrected sum is right to a micro-dollar too.
"""

from collections import defaultdict
from decimal import Decimal

import msgspec

from doorstep import ids
from doorstep.config import PriceSettings
from doorstep.store import Store
from doorstep.store.queries import REPRICE, corrections, hosted_calls, workflows_of
from doorstep.types import Call, Cost
from doorstep.value.prices import LOCAL, PriceBook


class Repriced(msgspec.Struct, frozen=True, kw_only=True):
    """What a repricing came to."""

    calls: int  # that were looked at
    corrected: int
    unknown: int  # whose price is still not known
    change_microusd: int


def reprice(store: Store, prices: PriceSettings, since: int = 0) -> Repriced:
    """Price the calls of hosted models again that began at ``since`` or later, and write what differs."""
    book = PriceBook(prices)
    owed: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    calls = unknown = corrected = change = 0
    for page in hosted_calls(store, LOCAL, since):
        corrected_before = corrections(store, [call.call_id for call in page])
        workflows = workflows_of(store, {call.run_id for call in page if call.run_id is not None})
        costs: list[Cost] = []
        for call in page:
            rates = book.rates(call.provider, call.served_model, call.started_us)
            exact = None if rates is None else rates.cost(call)
            if rates is None or exact is None:
                unknown += call.cost_microusd is None and call.call_id not in corrected_before
                continue
            model, before = (call.provider, call.served_model), corrected_before.get(call.call_id)
            owed[model] += exact - (call.cost_microusd or 0) - (before or 0)
            whole = int(owed[model])
            if whole or (call.cost_microusd is None and before is None):
                owed[model] -= whole
                costs.append(_correction(call, whole, rates.version, workflows.get(call.run_id or "")))
        store.add(*costs)
        calls += len(page)
        corrected += len(costs)
        change += sum(cost.amount_microusd for cost in costs)
    return Repriced(calls=calls, corrected=corrected, unknown=unknown, change_microusd=change)


def _correction(call: Call, amount: int, basis: str, workflow: str | None) -> Cost:
    return Cost(
        cost_id=ids.new_id("cost"),
        scope=REPRICE,
        ref=call.call_id,
        workflow=workflow,
        quantity=1.0,
        unit="call",
        amount_microusd=amount,
        basis=basis,
        at_us=call.started_us,
    )
