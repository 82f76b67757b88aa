"""Routes: which model serves a workflow now, moved by decisions and moved back by one row.

A route row is never changed; promotions stack, and a rollback uncovers the route beneath.
"""

import time

from doorstep import ids
from doorstep.errors import UsageError
from doorstep.routing.decisions import decision_of
from doorstep.store import Store
from doorstep.types import Decision, Route

CACHE_S = 0.5  # rows of other processes are seen within this time


class RouteTable:
    """The routes that count now, for the gateway: a look-up costs a read of the store at most twice a second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[float, Route | None]] = {}

    def model_for(self, workflow: str) -> tuple[str, str | None] | None:
        """Return the model that serves a workflow and the decision that put it there; ``None`` without a route."""
        route = self._route(workflow)
        return None if route is None else (route.model, route.decision_id)

    def _route(self, workflow: str) -> Route | None:
        read_at, route = self._known.get(workflow, (-CACHE_S, None))
        now = time.monotonic()
        if now - read_at >= CACHE_S:
            route = current_route(self._store, workflow)
            if route is not None:  # unknown names are not kept: clients could fill the memory with them
                self._known[workflow] = now, route
        return route


def current_route(store: Store, workflow: str) -> Route | None:
    """Return the newest route of a workflow."""
    routes = _history(store, workflow)
    return routes[-1] if routes else None


def promote(store: Store, decision_id: str, *, model: str, champion_model: str) -> Route:
    """Move the traffic to the candidate of a decision, served as ``model``.

    A workflow without a route first gets one to its champion, so that there is a way back. Raises ``UsageError``
    when the decision does not say promote. Promoting twice is one route.
    """
    decision = decision_of(store, decision_id)
    if decision.verdict != "promote":
        why = "; ".join(decision.statistics.get("reasons", []))
        raise UsageError(
            f"Decision {decision_id} says {decision.verdict}{f': {why}' if why else ''}. Nothing was moved."
        )
    now = current_route(store, decision.workflow)
    if now is not None and now.decision_id == decision_id:
        return now
    if now is None:
        now = _route(decision.workflow, decision.champion, champion_model, None)
        store.add(now)
    route = _route(decision.workflow, decision.candidate, model, decision_id, after=now)
    store.add(route)
    return route


def rollback(store: Store, workflow: str, *, why: str, made_by: str) -> Route:
    """Move the traffic back to what served before the promotion that counts now; raises ``UsageError`` without one."""
    standing = _standing(store, workflow)
    if len(standing) < 2:
        raise UsageError(f"'{workflow}' has no earlier route to go back to.")
    left, back = standing[-1], standing[-2]
    decision = Decision(
        decision_id=ids.new_id("decision"),
        workflow=workflow,
        kind="rollback",
        champion=back.variant,
        candidate=left.variant,
        plan={},
        plan_digest=ids.digest({}),
        data_query={"left_route": left.route_id, "back_to_route": back.route_id},
        data_digest=ids.digest([left, back]),
        statistics={"why": why},
        verdict="rollback",
        made_by=made_by,
        at_us=ids.now_us(),
    )
    route = _route(workflow, back.variant, back.model, decision.decision_id, after=_history(store, workflow)[-1])
    store.add(decision, route)
    return route


def _standing(store: Store, workflow: str) -> list[Route]:
    """Return the routes that stand on each other now: each rollback took the uppermost away."""
    rollbacks = {decision.decision_id for decision in store.select(Decision, workflow=workflow, kind="rollback")}
    standing: list[Route] = []
    for route in _history(store, workflow):
        if route.decision_id in rollbacks:
            standing.pop()
        else:
            standing.append(route)
    return standing


def _history(store: Store, workflow: str) -> list[Route]:
    return store.select(Route, workflow=workflow, order_by="at_us")


def _route(workflow: str, variant: str, model: str, decision_id: str | None, after: Route | None = None) -> Route:
    return Route(
        route_id=ids.new_id("route"),
        workflow=workflow,
        variant=variant,
        model=model,
        decision_id=decision_id,
        at_us=max(ids.now_us(), after.at_us + 1 if after else 0),  # a clock that was set back must not hide the new row
    )
