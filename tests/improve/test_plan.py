"""The plan on disk: written before anything is done, gone on from after a kill."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import NotFound, UsageError
from doorstep.improve.plan import (
    MAX_RL_STEPS,
    OUTCOME,
    Job,
    Progress,
    parse_budget,
    rl_steps_within,
    sft_plan,
    sft_steps,
    write_atomic,
)


@pytest.fixture
def job(tmp_path, plan):
    return lambda job_id, workflow="orders": Job.create(
        tmp_path, msgspec.structs.replace(plan, job_id=job_id, workflow=workflow)
    )


def test_a_job_is_found_again_with_its_plan_and_safe_point(job, tmp_path):
    made = job("job_1")
    made.save(Progress(stage="sft", step=10, state="tinker://x"))
    found = Job.latest(tmp_path, None)
    assert (found.plan, found.progress().step) == (made.plan, 10)


def test_the_newest_that_is_not_finished_is_gone_on_with(job, tmp_path):
    job("job_1"), job("job_2"), job("job_3", workflow="tickets")
    (job("job_4").folder / OUTCOME).write_text("{}")
    assert Job.latest(tmp_path, "orders").plan.job_id == "job_2"
    assert Job.latest(tmp_path, None).plan.job_id == "job_3"
    with pytest.raises(NotFound, match="No unfinished improvement"):
        Job.latest(tmp_path, "invoices")


def test_a_job_that_was_killed_before_its_plan_was_written_is_nothing(tmp_path):
    (tmp_path / "job_1").mkdir()
    with pytest.raises(NotFound):
        Job.latest(tmp_path, None)


def test_a_file_is_replaced_whole_and_no_neighbour_is_touched(tmp_path):
    (tmp_path / "orders.tmp").write_text("mine")
    for data in (b"old", b"new"):
        write_atomic(tmp_path / "orders.csv", data)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"orders.csv": "new", "orders.tmp": "mine"}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), (" 1.5 H ", 5400)])
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "5 min", "1e3s"])
def test_what_is_no_budget_is_said(text):
    with pytest.raises(UsageError, match="give a time such as 90s"):
        parse_budget(text)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_time_is_never_fewer_steps_and_there_is_a_least_and_a_most(one, other):
    few, many = (rl_steps_within(seconds, sft=100) for seconds in sorted([one, other]))
    assert 5 <= few <= many <= MAX_RL_STEPS


@given(st.integers(1, 20_000))
def test_few_records_are_read_more_often_than_many(records):
    plan = sft_plan(records)
    assert 2 <= plan.epochs <= 8
    assert sft_steps(plan, records) * plan.batch >= plan.epochs * min(records, plan.batch)
