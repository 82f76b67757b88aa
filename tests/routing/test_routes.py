"""Routes follow decisions, can be undone as often as they were made, and reach other processes within a second."""

import time

import msgspec
import pytest

from doorstep.errors import UsageError
from doorstep.routing.decisions import decide_and_store
from doorstep.routing.gate import Plan
from doorstep.routing.routes import CACHE_S, RouteTable, current_route, promote, rollback
from doorstep.store import Store
from doorstep.types import Decision, Route


@pytest.fixture
def decision(store, measured) -> Decision:
    measured("base", 10)
    measured("rl", 30)
    return decide_and_store(
        store, Plan(), workflow="orders", champion=("base", "base"), candidate=("rl", "rl"), dataset_id="ds"
    )


def moved(store, decision, model="tinker://rl"):
    return promote(store, decision.decision_id, model=model, champion_model="tiny")


def test_a_promotion_moves_the_traffic(store, decision):
    assert RouteTable(store).model_for("orders") is None
    moved(store, decision)
    assert RouteTable(store).model_for("orders") == ("tinker://rl", decision.decision_id)
    assert moved(store, decision) == current_route(store, "orders")
    assert len(store.select(Route)) == 2


def test_what_is_held_is_not_promoted(store, decision):
    held = msgspec.structs.replace(decision, decision_id="held", verdict="hold", statistics={"reasons": ["p = 0.4"]})
    store.add(held)
    with pytest.raises(UsageError, match=r"says hold: p = 0\.4\. Nothing was moved"):
        moved(store, held)
    assert store.select(Route) == []


def test_rollbacks_undo_promotions_one_by_one(store, decision):
    second = msgspec.structs.replace(decision, decision_id="second", candidate="rl2")
    store.add(second)
    moved(store, decision)
    moved(store, second, "tinker://rl2")
    models = [rollback(store, "orders", why="complaints", made_by="ann").model for _ in range(2)]
    assert models == ["tinker://rl", "tiny"]
    with pytest.raises(UsageError, match="no earlier route"):
        rollback(store, "orders", why="complaints", made_by="ann")
    undone = store.select(Decision, kind="rollback")
    assert [(one.verdict, one.statistics["why"], one.made_by) for one in undone] == [
        ("rollback", "complaints", "ann")
    ] * 2


def test_a_promotion_after_a_rollback_stands_on_what_was_left(store, decision):
    moved(store, decision)
    rollback(store, "orders", why="tried", made_by="ann")
    moved(store, decision)
    assert current_route(store, "orders").model == "tinker://rl"
    assert rollback(store, "orders", why="again", made_by="ann").model == "tiny"


def test_other_processes_rows_are_seen_within_a_second(store, decision, tmp_path):
    table = RouteTable(store)
    moved(store, decision)
    assert table.model_for("orders")[0] == "tinker://rl"
    with Store.open(tmp_path / "doorstep.db") as other:
        rollback(other, "orders", why="undo", made_by="ann")
    time.sleep(CACHE_S)
    assert table.model_for("orders")[0] == "tiny"
