"""``promote``, ``rollback`` and ``decision`` on a record that an improvement left."""

import sqlite3

from doorstep import config
from doorstep.cli.models import served_model
from doorstep.store import Store
from doorstep.types import Route


def _served() -> tuple[str, str]:
    settings = config.load()
    with Store.open(settings.data / "doorstep.db") as store:
        served = served_model(store, settings, "crates", None)
    return served.variant, served.model


def test_promote_moves_the_traffic_to_the_candidate_of_the_newest_decision(doorstep, improved):
    assert _served() == ("base", "tiny")
    assert doorstep("promote", "crates", "--json").json["decision_id"] == improved.decision.decision_id
    assert _served() == ("rl", "tinker://job/weights/rl")


def test_promoting_twice_is_one_promotion(doorstep, improved):
    assert doorstep("promote", "crates", "--json").json == doorstep("promote", "crates", "--json").json


def test_a_decision_about_another_workflow_moves_nothing(doorstep, improved):
    ended = doorstep("promote", "boxes", "--decision", improved.decision.decision_id)
    assert ended.code == 2
    assert "about 'crates'" in ended.err


def test_rollback_goes_back_and_keeps_why(doorstep, improved):
    doorstep("promote", "crates")
    decision = doorstep("rollback", "crates", "--why", "wrong units", "--json").json["decision_id"]
    assert _served() == ("base", "tiny")
    assert doorstep("decision", "show", decision, "--json").json["statistics"] == {"why": "wrong units"}


def test_rollback_needs_a_reason(doorstep, improved):
    assert doorstep("rollback", "crates").code == 2


def test_a_decision_shows_its_evidence(doorstep, improved):
    shown = doorstep("decision", "show", improved.decision.decision_id).out
    assert "promote rl against base" in shown
    assert "p_value" in shown


def test_a_decision_verifies(doorstep, improved):
    ended = doorstep("decision", "verify", improved.decision.decision_id, "--json")
    assert (ended.code, ended.json) == (0, {"id": improved.decision.decision_id, "same": True})


def test_a_decision_on_changed_rows_does_not_verify_and_exits_1(doorstep, improved):
    with sqlite3.connect(".doorstep/doorstep.db") as database:
        database.execute("UPDATE grade SET value = 0 WHERE grade_id = 'grade_rl_0'")
    database.close()
    ended = doorstep("decision", "verify", improved.decision.decision_id, "--json")
    assert (ended.code, ended.json["same"]) == (1, False)


def test_the_way_back_is_written_before_the_first_promotion(doorstep, improved):
    doorstep("promote", "crates")
    with Store.open(".doorstep/doorstep.db") as store:
        assert [route.variant for route in store.select(Route, workflow="crates", order_by="at_us")] == ["base", "rl"]
