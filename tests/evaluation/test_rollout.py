"""Roll-outs: every task once, whatever happens in between."""

import asyncio

import msgspec
import pytest

from doorstep.errors import UsageError
from doorstep.evaluation.rollout import roll_out, with_confidence
from doorstep.grading.calibration import fit
from doorstep.grading.graders import CodeGrader
from doorstep.types import Grade, Run, RunStatus

GRADER = CodeGrader()


async def test_every_task_has_a_run_and_a_grade_in_the_order_of_the_tasks(store, tasks, runner):
    runs = await roll_out(store, runner("e"), tasks, "e", grader=GRADER)
    assert [run.task_id for run in runs] == [task.task_id for task in tasks]
    assert {grade.value for grade in store.select(Grade)} == {1.0}
    assert {grade.run_id for grade in store.select(Grade)} == {run.run_id for run in store.select(Run)}


async def test_only_the_work_of_the_model_is_graded(store, tasks, runner):
    failed = {"t0": RunStatus.AGENT_ERROR, "t1": RunStatus.INFRA_ERROR, "t2": RunStatus.INPUT_ERROR}
    runs = await roll_out(store, runner("e", **failed), tasks[:4], "e", grader=GRADER)
    grades = {grade.run_id: grade.value for grade in store.select(Grade)}
    assert [grades.get(run.run_id) for run in runs] == [0.0, None, None, 1.0]
    assert len(grades) == 2


async def test_an_abstention_is_a_grade_without_a_value_and_with_a_reason(store, tasks, runner):
    await roll_out(store, runner("e"), tasks[:1], "e", grader=CodeGrader(lambda value, expected: None))
    (grade,) = store.select(Grade)
    assert (grade.value, grade.why, grade.detail) == (None, "grade() gave no grade", None)


async def test_new_work_without_an_expected_answer_has_no_grade(store, tasks, runner):
    new = [msgspec.structs.replace(tasks[0], expected=None)]
    await roll_out(store, runner("e"), new, "e", grader=GRADER)
    assert store.select(Grade) == []


async def test_going_on_asks_only_what_has_no_answer_yet(store, tasks, runner):
    await roll_out(store, runner("e", t3=RunStatus.INFRA_ERROR), tasks[:10], "e", grader=GRADER)
    again = runner("e")
    runs = await roll_out(store, again, tasks, "e", grader=GRADER)
    assert sorted(again.asked) == sorted(["t3", *(f"t{i}" for i in range(10, 20))])
    assert {run.status for run in runs} == {RunStatus.OK}
    assert len(store.select(Grade)) == 20


async def test_another_evaluation_asks_anew(store, tasks, runner):
    await roll_out(store, runner("e1"), tasks, "e1")
    other = runner("e2")
    await roll_out(store, other, tasks, "e2")
    assert len(other.asked) == 20


async def test_two_inputs_of_one_name_are_two_tasks_and_one_input_given_twice_is_one(store, tasks, runner):
    same_name = msgspec.structs.replace(tasks[1], task_id="t0")
    made = runner("e")
    runs = await roll_out(store, made, [tasks[0], same_name, tasks[0]], "e")
    assert [run.output for run in runs] == ["0", "1", "0"]
    assert len(made.asked) == 2


async def test_when_one_stops_the_work_what_is_done_is_kept_and_the_rest_is_not_begun(store, tasks, runner):
    stopping = runner("e", t5=UsageError("no such model"))
    with pytest.raises(UsageError):
        await roll_out(store, stopping, tasks, "e", concurrency=1)
    assert {run.task_id for run in store.select(Run)} == {f"t{i}" for i in range(5)}
    again = runner("e")
    await roll_out(store, again, tasks, "e")
    assert again.asked == [f"t{i}" for i in range(5, 20)]


async def test_a_user_who_stops_loses_no_finished_run(store, tasks, runner):
    class Waiting(runner):
        async def run(self, task):
            if task.task_id == "t3":
                await asyncio.Event().wait()
            return await super().run(task)

    others_done = asyncio.Event()

    def progress(done, of):
        if done == 19:
            others_done.set()

    work = asyncio.create_task(roll_out(store, Waiting("e"), tasks, "e", grader=GRADER, progress=progress))
    await others_done.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    again = runner("e")
    await roll_out(store, again, tasks, "e", grader=GRADER)
    assert again.asked == ["t3"]


async def test_never_more_at_once_than_allowed(store, tasks, runner):
    running, most = 0, 0

    class Counting(runner):
        async def run(self, task):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return await super().run(task)

    await roll_out(store, Counting("e"), tasks, "e", concurrency=3)
    assert most == 3


async def test_progress_counts_what_was_done_before(store, tasks, runner):
    await roll_out(store, runner("e"), tasks[:15], "e")
    heard = []
    await roll_out(store, runner("e"), tasks, "e", progress=lambda done, of: heard.append((done, of)))
    assert heard == [(done, 20) for done in range(15, 21)]


@pytest.mark.parametrize(("raw", "needs_person"), [(0.95, False), (0.3, True), (None, True)])
def test_a_person_looks_at_what_is_not_surely_right(tasks, run_of, raw, needs_person):
    calibration = fit([0.3] * 20 + [0.9] * 20, [False] * 20 + [True] * 20)
    run = with_confidence(run_of(tasks[0], "e", confidence=raw), calibration)
    assert run.needs_person is needs_person
    assert run.confidence != raw or raw is None
