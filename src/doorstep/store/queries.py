"""Named queries: sums that the database makes itself, each with the type of its rows."""

from typing import Any

import msgspec
import sqlalchemy as sa

from doorstep import types
from doorstep.store import schema
from doorstep.store.store import Store
from doorstep.types import Mode

RUN = schema.TABLES[types.Run]
CALL = schema.TABLES[types.Call]
COST = schema.TABLES[types.Cost]


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


def usage(store: Store, workflow: str, since: int = 0) -> list[Usage]:
    """Return a workflow's model calls, summed by mode, provider and model, of runs that began at ``since`` or later."""
    metered = CALL.c.input_tokens.is_not(None) & CALL.c.output_tokens.is_not(None)
    group = (
        RUN.c.mode,
        CALL.c.provider,
        CALL.c.served_model,
        metered.label("metered"),
        CALL.c.cost_microusd.is_not(None).label("priced"),
    )
    query = (
        sa.select(
            *group,
            sa.func.count().label("calls"),
            _sum(CALL.c.input_tokens).label("input_tokens"),
            _sum(CALL.c.output_tokens).label("output_tokens"),
            _sum(CALL.c.cost_microusd).label("cost_microusd"),
        )
        .join(RUN, RUN.c.run_id == CALL.c.run_id)
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
        .where(COST.c.workflow == workflow, COST.c.at_us >= since)
        .group_by(COST.c.scope)
        .order_by(COST.c.scope)
    )
    return _rows(store, query, Spend)


def _sum(expression: Any) -> Any:
    return sa.cast(sa.func.coalesce(sa.func.sum(expression), 0), sa.BigInteger)  # PostgreSQL sums bigint as numeric


def _rows(store: Store, query: sa.Select[Any], kind: type[Any]) -> list[Any]:
    return [msgspec.convert({str(name): value for name, value in row.items()}, kind) for row in store.rows(query)]
