"""Decisions rest on stored rows alone: they come out the same again, refuse leaks, and miss nothing silently."""

import msgspec
import pytest

from doorstep import ids
from doorstep.errors import HeldOutLeak, NotFound, UsageError
from doorstep.routing.decisions import decide_and_store, verify
from doorstep.routing.gate import Plan
from doorstep.types import Decision, Grade, Run, RunStatus, Split


def decided(store, **changes):
    values = {"workflow": "orders", "champion": ("base", "base"), "candidate": ("rl", "rl"), "dataset_id": "ds"}
    return decide_and_store(store, Plan(), **(values | changes))


def test_a_decision_is_kept_and_comes_out_the_same(store, measured):
    measured("base", 10)
    measured("rl", 30)
    decision = decided(store)
    assert (decision.verdict, decision.statistics["n"]) == ("promote", 40)
    assert decision.statistics["p_value"] == 2**-20
    assert store.select(Decision) == [decision]
    assert verify(store, decision.decision_id) is True


def test_asked_again_it_is_the_same_decision(store, measured):
    measured("base", 10)
    measured("rl", 30)
    assert decided(store) == decided(store)
    assert decided(store, workflow="returns").decision_id != decided(store).decision_id


def test_later_corrections_do_not_change_what_was_decided(store, measured):
    measured("base", 10)
    measured("rl", 30)
    before = decided(store)
    wrong = store.get(Grade, "grade_rl_0")
    store.add(
        msgspec.structs.replace(wrong, grade_id="later", value=0.0, at_us=ids.now_us(), supersedes=wrong.grade_id)
    )
    assert verify(store, before.decision_id) is True
    assert decided(store).statistics["candidate"]["score"] == 29 / 40


def test_a_changed_decision_is_noticed(store, measured):
    measured("base", 10)
    measured("rl", 30)
    decision = decided(store)
    forged = msgspec.structs.replace(decision, decision_id="forged", statistics=decision.statistics | {"p_value": 0.0})
    other_plan = msgspec.structs.replace(decision, decision_id="other", plan=decision.plan | {"alpha": 0.5})
    store.add(forged, other_plan)
    assert [verify(store, name) for name in ("forged", "other")] == [False, False]


def test_an_unknown_decision_is_said(store):
    with pytest.raises(NotFound, match="no decision 'd1'"):
        verify(store, "d1")


def test_a_held_out_task_in_training_is_refused(store, measured, item):
    measured("base", 10)
    measured("rl", 30)
    store.add(item("older", "t3", Split.TRAIN))
    with pytest.raises(HeldOutLeak, match="first t3"):
        decided(store, trained_on="older")
    near = msgspec.structs.replace(item("near", "other", Split.TRAIN), cluster="c_t4")
    store.add(near)
    with pytest.raises(HeldOutLeak, match="first t4"):
        decided(store, trained_on="near")
    assert store.select(Decision) == []


def test_a_dataset_without_held_out_records_is_refused(store):
    with pytest.raises(UsageError, match="no held-out records"):
        decided(store, dataset_id="unknown")


def test_infrastructure_failures_count_against_nobody_but_are_counted(store, measured):
    measured("base", 10)
    store.add(_failed("infra", RunStatus.INFRA_ERROR, 0), _failed("asked_again", RunStatus.INFRA_ERROR, 5))
    for i in [*range(1, 40)]:
        store.add(*_answered(i))
    figures = decided(store).statistics
    assert figures["gaps"] == {"champion": {}, "candidate": {"infra_error": 1}}
    assert (figures["n"], figures["coverage"], figures["candidate"]["score"]) == (39, 39 / 40, 1.0)


def test_a_task_that_was_never_run_is_missing(store, measured):
    measured("base", 10)
    figures = decided(store).statistics
    assert (figures["n"], figures["gaps"]["candidate"]) == (0, {"no_run": 40})


def _failed(run_id, status, i):
    return Run(
        run_id=run_id,
        workflow="orders",
        variant="rl",
        mode="eval",
        task_id=f"t{i}",
        task_digest=f"d_t{i}",
        status=status,
        started_us=0,
        ended_us=1,
        evaluation_id="rl",
    )


def _answered(i):
    run = msgspec.structs.replace(_failed(f"run_{i}", RunStatus.OK, i), started_us=2, ended_us=3)
    grade = Grade(
        grade_id=f"g{i}", run_id=run.run_id, name="exact", value=1.0, source="code", grader_version="1", at_us=4
    )
    return run, grade
