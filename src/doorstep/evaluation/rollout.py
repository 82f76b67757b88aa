"""Running a workflow over many tasks: a bounded number at once, each result stored as it comes, resumable.

A task (its id and its digest) that already has a run under the same evaluation id is not run again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from doorstep import ids
from doorstep.grading.calibration import Calibration
from doorstep.grading.graders import EXACT, WRONG, Abstention, CodeGrader
from doorstep.routing.decisions import SAYS_NOTHING
from doorstep.store import Store
from doorstep.types import Grade, GradeSource, Record, Run, RunStatus
from doorstep.workflows.taskset import Task

CONCURRENCY = 48
PERSON_BELOW = 0.8  # calibrated chance of being right under which a person should look


class TaskRunner(Protocol):
    """What makes one run out of one task."""

    async def run(self, task: Task) -> Run:
        """Do the task; a failure of the task or the model is a run too."""
        ...


Progress = Callable[[int, int], None]


async def roll_out(
    store: Store,
    runner: TaskRunner,
    tasks: Sequence[Task],
    evaluation_id: str,
    *,
    grader: CodeGrader | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    concurrency: int = CONCURRENCY,
) -> list[Run]:
    """Run every task once and return the runs in the order of the tasks.

    Infrastructure failures are stored but asked again by the next call, for they say nothing about the task.
    """
    done = _done(store, evaluation_id)
    todo = {_key(task): task for task in tasks if _key(task) not in done}
    finished = sum(_key(task) in done for task in tasks)
    made: dict[tuple[str, str], Run] = {}
    kept = _Kept(store)
    waiting = iter(todo.items())

    async def work() -> None:
        nonlocal finished
        for key, task in waiting:  # one iterator for all workers: each takes the next task
            made[key] = run = with_confidence(await runner.run(task), calibration)
            grades = [] if grader is None or task.expected is None else grades_for(run, grader, task.expected)
            await kept.add(run, *grades)
            finished += 1
            if progress:
                progress(finished, len(tasks))

    if progress:
        progress(finished, len(tasks))
    try:
        await gather_all([work() for _ in range(min(concurrency, len(todo)))])
    finally:
        await kept.flush()
    runs = done | made
    return [runs[_key(task)] for task in tasks]


class _Kept:
    """Puts records into the store: what comes while one transaction is written goes together into the next."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[Record] = []
        self._writing = asyncio.Lock()

    async def add(self, *records: Record) -> None:
        """Return when these records are stored."""
        self._waiting += records
        async with self._writing:
            await self.flush()

    async def flush(self) -> None:
        """Store what still waits, also when the work was stopped."""
        records, self._waiting = self._waiting, []
        if records:
            await asyncio.to_thread(self._store.add, *records)


def _key(task: Task) -> tuple[str, str]:
    return task.task_id, task.digest


def _done(store: Store, evaluation_id: str) -> dict[tuple[str, str], Run]:
    """Return the runs of an evaluation that count: of each task the first that says something, as the gate has it."""
    runs = store.select(Run, evaluation_id=evaluation_id, order_by="-started_us")
    return {(run.task_id, run.task_digest): run for run in runs if run.status not in SAYS_NOTHING}


async def gather_all(work: Sequence[Awaitable[None]]) -> None:
    """Wait for all; when one fails or the user stops, the others are cancelled before the error goes up."""
    futures = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*futures)
    except BaseException:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
        raise


def grades_for(run: Run, grader: CodeGrader, expected: object) -> list[Grade]:
    """Grade one run. Only the work of the model is graded: bad input and our own failures get no grade."""
    if run.status is RunStatus.OK:
        score = grader.score(run.output, expected)
    elif run.status is RunStatus.AGENT_ERROR:
        score = WRONG
    else:
        return []
    grade = Grade(
        grade_id=f"grade_{run.run_id.removeprefix('run_')}",
        run_id=run.run_id,
        name=EXACT,
        value=None,
        source=GradeSource.CODE,
        grader_version=grader.version,
        at_us=ids.now_us(),
    )
    if isinstance(score, Abstention):
        return [msgspec.structs.replace(grade, why=score.why)]
    return [msgspec.structs.replace(grade, value=score.exact, detail={"reward": score.reward, **score.fields})]


def with_confidence(run: Run, calibration: Calibration | None) -> Run:
    """Replace the model's raw confidence by the calibrated one, and flag what a person should see."""
    if calibration is None or run.status is not RunStatus.OK:
        return run
    confidence = calibration.probability(run.confidence)
    unsure = confidence is None or confidence < PERSON_BELOW
    return msgspec.structs.replace(run, confidence=confidence, needs_person=run.needs_person or unsure)
