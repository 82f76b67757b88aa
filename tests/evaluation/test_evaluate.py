"""An evaluation from stored rows: what is not known is not made up."""

import threading
import time

import msgspec
import pytest

from doorstep import ids
from doorstep.errors import UsageError
from doorstep.evaluation.evaluate import await_calls, grades_of, summarise
from doorstep.evaluation.rollout import roll_out
from doorstep.grading.graders import CodeGrader
from doorstep.types import Grade, RunStatus


@pytest.fixture
def measured(store, tasks, runner, call_of):
    """Return the runs of an evaluation: 15 right, 2 wrong, 3 without an answer; each answer has its call."""

    async def measure():
        failed = dict.fromkeys(["t0", "t1"], RunStatus.AGENT_ERROR) | dict.fromkeys(
            ["t2", "t3", "t4"], RunStatus.INFRA_ERROR
        )
        runs = await roll_out(store, runner("e", **failed), tasks, "e", grader=CodeGrader())
        store.add(*[call_of(run) for run in runs if run.status is not RunStatus.INFRA_ERROR])
        return runs

    return measure


async def test_the_score_is_over_what_was_graded_and_what_is_missing_is_said(store, measured):
    result = summarise(store, "e", await measured())
    assert (result.n, result.missing, result.score) == (17, 3, 15 / 17)
    assert result.low < result.score < result.high
    assert (result.cost_usd, result.input_tokens, result.output_tokens) == (17 * 7 / 1e6, 170, 51)


async def test_latency_is_that_of_answers(store, measured, run_of, tasks):
    runs = await measured()
    slow = [
        msgspec.structs.replace(run, ended_us=run.started_us + 10**9)
        for run in runs
        if run.status is RunStatus.INFRA_ERROR
    ]
    result = summarise(store, "e", [run for run in runs if run.status is not RunStatus.INFRA_ERROR] + slow)
    assert (result.p50_ms, result.p95_ms) == (1.0, 1.0)


@pytest.mark.parametrize("unknown", ["cost_microusd", "input_tokens", "output_tokens"])
async def test_one_unknown_number_makes_the_sum_unknown(store, tasks, runner, call_of, unknown):
    runs = await roll_out(store, runner("e"), tasks, "e", grader=CodeGrader())
    store.add(*[call_of(run) for run in runs[1:]], call_of(runs[0], **{unknown: None}))
    result = summarise(store, "e", runs)
    shown = {
        "cost_microusd": result.cost_usd,
        "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens,
    }
    assert [name for name, value in shown.items() if value is None] == [unknown]


async def test_an_answer_whose_call_is_not_recorded_makes_the_cost_unknown(store, tasks, runner, call_of):
    runs = await roll_out(store, runner("e"), tasks, "e", grader=CodeGrader())
    store.add(*[call_of(run) for run in runs[1:]])
    assert summarise(store, "e", runs).cost_usd is None


async def test_a_failed_try_before_the_answer_does_not_hide_the_cost(store, measured, call_of):
    runs = await measured()
    store.add(call_of(runs[-1], error="HTTP 500", status_code=500, cost_microusd=None, input_tokens=None))
    assert summarise(store, "e", runs).cost_usd == 17 * 7 / 1e6


async def test_nothing_graded_is_no_score_of_zero(store, tasks, runner):
    runs = await roll_out(
        store, runner("e", **dict.fromkeys([task.task_id for task in tasks], RunStatus.INFRA_ERROR)), tasks, "e"
    )
    with pytest.raises(UsageError, match="None of the 20 records could be graded"):
        summarise(store, "e", runs)


async def test_a_correction_supersedes_and_a_withdrawn_grade_is_missing(store, tasks, runner):
    runs = await roll_out(store, runner("e"), tasks[:2], "e", grader=CodeGrader())
    for run, value in zip(runs, (0.0, None), strict=True):
        (first,) = store.select(Grade, run_id=run.run_id)
        changes = {
            "grade_id": f"{first.grade_id}_2",
            "supersedes": first.grade_id,
            "at_us": ids.now_us(),
            "why": "checked",
        }
        store.add(msgspec.structs.replace(first, value=value, **changes))
    assert grades_of(store, runs) == {runs[0].run_id: 0.0}


async def test_calls_that_are_written_late_are_waited_for(store, tasks, runner, call_of):
    runs = await roll_out(store, runner("e"), tasks, "e")
    late = threading.Timer(0.2, lambda: store.add(*[call_of(run) for run in runs]))
    late.start()
    began = time.monotonic()
    await_calls(store, runs)
    assert 0.1 < time.monotonic() - began < 5
    late.join()
