"""Named queries: sums that the database makes itself, each with the type of its rows."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from doorstep import types
from doorstep.store import schema
from doorstep.store.store import Store
from doorstep.types import Call, Mode

RUN = schema.TABLES[types.Run]
CALL = schema.TABLES[types.Call]
COST = schema.TABLES[types.Cost]
REPRICE = "reprice"  # scope of costs that correct what a call cost
PAGE = 2000
CORRECTION = (
    sa.select(COST.c.ref, sa.func.sum(COST.c.amount_microusd).label("amount"))
    .where(COST.c.scope == REPRICE)
    .group_by(COST.c.ref)
    .subquery()
)
CALL_COST = sa.func.coalesce(CALL.c.cost_microusd, 0) + sa.func.coalesce(CORRECTION.c.amount, 0)
IS_PRICED = CALL.c.cost_microusd.is_not(None) | CORRECTION.c.ref.is_not(None)
DAY_US = 86_400_000_000


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one model did for a workflow in one mode, apart for calls whose tokens and cost are known or not."""

    mode: Mode
    provider: str
    served_model: str
    metered: bool  # the tokens of these calls are known
    priced: bool  # their cost is known
    calls: int
    input_tokens: int
    output_tokens: int
    cost_microusd: int


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """Money spent on one scope (``train``, ``judge``, …) of a workflow."""

    scope: str
    amount_microusd: int


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls of one key for one name of a model cost on one day. ``day`` counts from the epoch, UTC."""

    key_id: str | None
    requested_model: str
    day: int
    cost_microusd: int


class DailyCost(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls of one model cost on one day. ``day`` counts from the epoch, UTC."""

    day: int
    served_model: str
    calls: int
    unpriced: int  # of them: missing from the sum
    cost_microusd: int


def usage(store: Store, workflow: str, since: int = 0) -> list[Usage]:
    """Return a workflow's model calls, summed by mode, provider and model, of runs that began at ``since`` or later."""
    metered = CALL.c.input_tokens.is_not(None) & CALL.c.output_tokens.is_not(None)
    group = (
        RUN.c.mode,
        CALL.c.provider,
        CALL.c.served_model,
        metered.label("metered"),
        IS_PRICED.label("priced"),
    )
    query = (
        sa.select(
            *group,
            sa.func.count().label("calls"),
            _sum(CALL.c.input_tokens).label("input_tokens"),
            _sum(CALL.c.output_tokens).label("output_tokens"),
            _sum(CALL_COST).label("cost_microusd"),
        )
        .join(RUN, RUN.c.run_id == CALL.c.run_id)
        .outerjoin(CORRECTION, CORRECTION.c.ref == CALL.c.call_id)
        .where(RUN.c.workflow == workflow, RUN.c.started_us >= since)
        .group_by(*group)
        .order_by(*group)
    )
    return _rows(store, query, Usage)


def run_counts(store: Store, workflow: str, since: int = 0) -> dict[Mode, int]:
    """Return how many runs of a workflow began at ``since`` or later, by mode."""
    query = (
        sa.select(RUN.c.mode, sa.func.count().label("runs"))
        .where(RUN.c.workflow == workflow, RUN.c.started_us >= since)
        .group_by(RUN.c.mode)
    )
    return {Mode(row["mode"]): row["runs"] for row in store.rows(query)}


def spending(store: Store, workflow: str, since: int = 0) -> list[Spend]:
    """Return a workflow's costs outside its calls, summed by scope."""
    query = (
        sa.select(COST.c.scope, _sum(COST.c.amount_microusd).label("amount_microusd"))
        .where(COST.c.workflow == workflow, COST.c.at_us >= since, COST.c.scope != REPRICE)
        .group_by(COST.c.scope)
        .order_by(COST.c.scope)
    )
    return _rows(store, query, Spend)


def spent(store: Store, since: int, before: int | None = None, key_id: str | None = None) -> list[Spent]:
    """Return what the calls that began in that time cost, of all keys or of one, by key, model and day."""
    group = (CALL.c.key_id, CALL.c.requested_model, (CALL.c.started_us // DAY_US).label("day"))
    query = (
        sa.select(*group, _sum(CALL.c.cost_microusd).label("cost_microusd"))
        .where(CALL.c.started_us >= since, CALL.c.cost_microusd > 0)
        .group_by(*group)
    )
    if before is not None:
        query = query.where(CALL.c.started_us < before)
    if key_id is not None:
        query = query.where(CALL.c.key_id == key_id)
    return _rows(store, query, Spent)


def hosted_calls(store: Store, own: str, since: int) -> Iterator[list[Call]]:
    """Yield, a page at a time, the calls since a moment that another provider than our ``own`` answered.

    Calls from our cache and errors are not among them: nothing was paid for them.
    """
    last = ""
    while True:
        query = (
            sa.select(CALL)
            .where(CALL.c.started_us >= since, CALL.c.call_id > last, CALL.c.provider != own, CALL.c.cached.is_(False))
            .where(sa.func.coalesce(CALL.c.cost_basis, "") != "free")
            .order_by(CALL.c.call_id)
            .limit(PAGE)
        )
        page = [schema.from_row(Call, row) for row in store.rows(query)]
        if not page:
            return
        yield page
        last = page[-1].call_id


def corrections(store: Store, call_ids: Sequence[str]) -> dict[str, int]:
    """Return what calls were corrected by, those that were."""
    found: dict[str, int] = {}
    for cost in store.select_in(types.Cost, "ref", call_ids):
        if cost.scope == REPRICE:
            found[cost.ref] = found.get(cost.ref, 0) + cost.amount_microusd
    return found


def workflows_of(store: Store, run_ids: Collection[str]) -> dict[str, str]:
    """Return the workflows of runs."""
    return {run.run_id: run.workflow for run in store.select_in(types.Run, "run_id", run_ids)}


def daily_costs(store: Store, provider: str, since: int, before: int) -> list[DailyCost]:
    """Return what the calls of a provider cost that began in that time, by day and model."""
    group = ((CALL.c.started_us // DAY_US).label("day"), CALL.c.served_model)
    query = (
        sa.select(
            *group,
            sa.func.count().label("calls"),
            _sum(sa.case((IS_PRICED, 0), else_=1)).label("unpriced"),
            _sum(CALL_COST).label("cost_microusd"),
        )
        .outerjoin(CORRECTION, CORRECTION.c.ref == CALL.c.call_id)
        .where(CALL.c.provider == provider, CALL.c.started_us >= since, CALL.c.started_us < before)
        .group_by(*group)
        .order_by(*group)
    )
    return _rows(store, query, DailyCost)


def _sum(expression: Any) -> Any:
    return sa.cast(sa.func.coalesce(sa.func.sum(expression), 0), sa.BigInteger)  # PostgreSQL sums bigint as numeric


def _rows(store: Store, query: sa.Select[Any], kind: type[Any]) -> list[Any]:
    return [msgspec.convert({str(name): value for name, value in row.items()}, kind) for row in store.rows(query)]
