"""Decisions: the gate applied to stored rows, kept with its plan and query, and computed again from them.

A decision's ``data_query`` names the rows and the moment up to which they count, so later grades and corrections
do not change what was decided.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from doorstep import ids
from doorstep.errors import HeldOutLeak, NotFound, UsageError
from doorstep.routing.gate import Pair, Plan, Verdict, decide
from doorstep.store import Store
from doorstep.store.views import current
from doorstep.types import DatasetItem, Decision, Grade, Run, RunStatus, Split

SAYS_NOTHING = (RunStatus.INFRA_ERROR, RunStatus.CANCELLED)  # another run of the same task may say more


class DataQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows a decision rests on."""

    champion_evaluation: str
    candidate_evaluation: str
    dataset_id: str  # whose held-out split both answered
    trained_on: str  # the dataset of the candidate's training
    as_of_us: int  # rows written later do not count


def decide_and_store(
    store: Store,
    plan: Plan,
    *,
    workflow: str,
    champion: tuple[str, str],
    candidate: tuple[str, str],
    dataset_id: str,
    trained_on: str | None = None,
    made_by: str = "gate",
) -> Decision:
    """Decide between two variants, each given as (name, evaluation id), on the held-out split of a dataset.

    ``trained_on`` is the dataset of the candidate's training, when it is another one. The same plan on the same data
    is one decision: asked again, it is returned, not made twice. Raises ``HeldOutLeak`` when the candidate's training
    split has a held-out task or a near-duplicate of one, ``UsageError`` when the dataset has no held-out split.
    """
    query = DataQuery(
        champion_evaluation=champion[1],
        candidate_evaluation=candidate[1],
        dataset_id=dataset_id,
        trained_on=trained_on or dataset_id,
        as_of_us=ids.now_us(),
    )
    pairs = _pairs(store, plan, query)
    verdict, data_digest = decide(plan, pairs), _digest(pairs)
    for made in store.select(Decision, workflow=workflow, data_digest=data_digest, plan_digest=plan.digest):
        if (made.champion, made.candidate) == (champion[0], candidate[0]) and _same_rows(made, query):
            return made
    decision = Decision(
        decision_id=ids.new_id("decision"),
        workflow=workflow,
        kind="promote",
        champion=champion[0],
        candidate=candidate[0],
        plan=msgspec.to_builtins(plan),
        plan_digest=plan.digest,
        data_query=msgspec.to_builtins(query),
        data_digest=data_digest,
        statistics=verdict.statistics,
        verdict=verdict.verdict,
        made_by=made_by,
        at_us=query.as_of_us,
    )
    store.add(decision)
    return decision


def verify(store: Store, decision_id: str) -> bool:
    """Compute a decision again from stored rows; say whether everything in it comes out the same."""
    decision = decision_of(store, decision_id)
    if decision.kind != "promote":
        raise UsageError(f"{decision_id} is a {decision.kind}: somebody's decision, with nothing to compute again")
    plan = msgspec.convert(decision.plan, Plan)
    pairs = _pairs(store, plan, msgspec.convert(decision.data_query, DataQuery))
    again = decide(plan, pairs)
    stored = Verdict(verdict=decision.verdict, statistics=decision.statistics)
    return plan.digest == decision.plan_digest and _digest(pairs) == decision.data_digest and again == stored


def decision_of(store: Store, decision_id: str) -> Decision:
    """Return a decision by its id, or raise ``NotFound``."""
    decision = store.get(Decision, decision_id)
    if decision is None:
        raise NotFound(
            f"There is no decision '{decision_id}'. The report of doorstep improve names those that were made."
        )
    return decision


def _same_rows(made: Decision, query: DataQuery) -> bool:
    return made.kind == "promote" and msgspec.convert(made.data_query, DataQuery) == msgspec.structs.replace(
        query, as_of_us=made.data_query["as_of_us"]
    )


def _digest(pairs: Sequence[Pair]) -> str:
    return ids.digest(sorted(ids.digest(pair) for pair in pairs))


def _pairs(store: Store, plan: Plan, query: DataQuery) -> list[Pair]:
    held_out = store.select(DatasetItem, dataset_id=query.dataset_id, split=Split.HELD_OUT)
    if not held_out:
        raise UsageError(f"Dataset {query.dataset_id} has no held-out records in the store; seal and store it first.")
    _refuse_leak(held_out, store.select(DatasetItem, dataset_id=query.trained_on, split=Split.TRAIN))
    champion = _scores(store, plan.metric, query.champion_evaluation, query.as_of_us)
    candidate = _scores(store, plan.metric, query.candidate_evaluation, query.as_of_us)
    return [_pair(item, champion, candidate) for item in held_out]


def _refuse_leak(held_out: Iterable[DatasetItem], trained: Iterable[DatasetItem]) -> None:
    digests, clusters = set(), set()
    for item in trained:
        digests.add(item.task_digest)
        clusters.add(item.cluster)
    leaked = [item.task_id for item in held_out if item.task_digest in digests or item.cluster in clusters]
    if leaked:
        raise HeldOutLeak(
            f"{len(leaked)} held-out record(s) are in the candidate's training split, first {leaked[0]}. "
            "Nothing was decided. Measure the candidate on records that it never saw."
        )


Score = tuple[float | None, str | None]  # the score, or the reason why there is none


def _scores(store: Store, metric: str, evaluation_id: str, as_of_us: int) -> dict[tuple[str, str], Score]:
    """Return the score of each (task id, digest) of an evaluation: that of its first run that says something."""
    runs = [
        run for run in store.select(Run, evaluation_id=evaluation_id, order_by="started_us") if run.ended_us <= as_of_us
    ]
    grades = [
        grade
        for grade in store.select_in(Grade, "run_id", {run.run_id for run in runs})
        if grade.name == metric and grade.at_us <= as_of_us
    ]
    values = {grade.run_id: grade.value for grade in current(grades)}
    scores: dict[tuple[str, str], Score] = {}
    for run in runs:
        task = run.task_id, run.task_digest
        if task not in scores or scores[task][1] in SAYS_NOTHING:
            scores[task] = _score(run, values)
    return scores


def _score(run: Run, values: Mapping[str, float | None]) -> Score:
    if run.status in (RunStatus.OK, RunStatus.AGENT_ERROR):
        value = values.get(run.run_id)
        return value, None if value is not None else "no_grade"
    return None, run.status.value


def _pair(item: DatasetItem, champion: Mapping[Any, Score], candidate: Mapping[Any, Score]) -> Pair:
    task, missing = (item.task_id, item.task_digest), (None, "no_run")
    champion_score, champion_gap = champion.get(task, missing)
    candidate_score, candidate_gap = candidate.get(task, missing)
    return Pair(
        task_digest=item.task_digest,
        cluster=item.cluster,
        champion=champion_score,
        candidate=candidate_score,
        champion_gap=champion_gap,
        candidate_gap=candidate_gap,
    )
