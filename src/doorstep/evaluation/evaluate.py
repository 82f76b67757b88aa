"""An evaluation: one variant over one split, as a score with its interval, cost and latency."""

import statistics
import time
from collections.abc import Sequence

import msgspec

from doorstep.errors import UsageError
from doorstep.grading.graders import EXACT
from doorstep.routing.gate import wilson_interval
from doorstep.store import Store
from doorstep.store.views import current
from doorstep.types import Call, Grade, Run, RunStatus

ANSWERED = (RunStatus.OK, RunStatus.AGENT_ERROR)


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an evaluation. ``score`` is the share exactly right among the ``n`` graded runs."""

    evaluation_id: str
    workflow: str
    variant: str
    n: int
    missing: int  # tasks without a grade: infrastructure failures, unusable inputs, a grader that abstained
    score: float
    low: float  # Wilson 95 % interval
    high: float
    cost_usd: float | None  # None when the cost of an answer is not known
    p50_ms: float
    p95_ms: float
    input_tokens: int | None  # None when those of an answer are not known
    output_tokens: int | None


def summarise(store: Store, evaluation_id: str, runs: Sequence[Run]) -> Evaluation:
    """Compute an evaluation from stored rows alone, so that it can be computed again.

    ``UsageError`` when no run has a grade: nothing was measured, which is no score of 0.
    """
    graded = grades_of(store, runs)
    if not graded:
        why = next((run.error for run in runs if run.error), "the grader gave no grade")
        raise UsageError(
            f"None of the {len(runs)} records could be graded, so there is no score. The first says: {why}"
        )
    right = sum(1 for value in graded.values() if value == 1.0)
    low, high = wilson_interval(right, len(graded))
    answered = [run for run in runs if run.status in ANSWERED]
    calls = _answers(store, answered)
    cost = _total([call.cost_microusd for call in calls])
    spans = sorted((run.ended_us - run.started_us) / 1000 for run in answered)
    return Evaluation(
        evaluation_id=evaluation_id,
        workflow=runs[0].workflow,
        variant=runs[0].variant,
        n=len(graded),
        missing=len(runs) - len(graded),
        score=right / len(graded),
        low=low,
        high=high,
        cost_usd=None if cost is None else cost / 1e6,
        p50_ms=round(statistics.median(spans), 1),
        p95_ms=round(spans[min(len(spans) - 1, int(0.95 * len(spans)))], 1),
        input_tokens=_total([call.input_tokens for call in calls]),
        output_tokens=_total([call.output_tokens for call in calls]),
    )


def _answers(store: Store, runs: Sequence[Run]) -> list[Call]:
    """Return the calls that answered these runs; none at all unless there is one for each run."""
    calls = [call for call in calls_of(store, runs) if call.error is None]
    return calls if {call.run_id for call in calls} == {run.run_id for run in runs} else []


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if values and len(known) == len(values) else None


def grades_of(store: Store, runs: Sequence[Run]) -> dict[str, float]:
    """Return run id → exact grade; a run without a grade is absent, never zero."""
    rows = store.select_in(Grade, "run_id", {run.run_id for run in runs})
    return {grade.run_id: grade.value for grade in current(rows) if grade.name == EXACT and grade.value is not None}


def await_calls(store: Store, runs: Sequence[Run], timeout_s: float = 10.0) -> None:
    """Wait until the gateway's recorder has written the calls of these runs; it does so a moment after answering."""
    answered = {run.run_id for run in runs if run.status in ANSWERED}
    deadline = time.monotonic() + timeout_s
    while answered - {call.run_id for call in calls_of(store, runs)} and time.monotonic() < deadline:
        time.sleep(0.05)


def calls_of(store: Store, runs: Sequence[Run]) -> list[Call]:
    """Return the calls that were made in these runs."""
    return store.select_in(Call, "run_id", {run.run_id for run in runs})
