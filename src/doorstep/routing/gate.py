"""The gate: paired rows in, a verdict with its evidence out. Pure: no store, no clock, no model.

The plan is fixed before the data. A candidate is promoted only when it is better beyond chance on enough records,
and enough of the records were measured at all: what is missing is counted, never guessed.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from doorstep import ids
from doorstep.errors import UsageError
from doorstep.routing.statistics import bootstrap_interval, mcnemar_p, sign_flip_p, wilson_interval

__all__ = ["Pair", "Plan", "Verdict", "decide", "wilson_interval"]

INPUT_ERROR = "input_error"  # the record was unusable: it counts against nobody, not even against coverage


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is compared and when it is enough. Its digest goes into the decision.

    ``mcnemar_exact`` is for scores that are 0 or 1, ``sign_flip`` for any score from 0 to 1.
    """

    metric: str = "exact"  # name of the grade
    test: Literal["mcnemar_exact", "sign_flip"] = "mcnemar_exact"
    alpha: float = 0.01  # chance of promoting a candidate that is no better
    min_n: int = 30  # clusters (independent records) with both scores
    min_coverage: float = 0.95  # share of usable records with both scores
    margin: float = 0.0  # the lower end of the difference's 95 % interval must be above minus this
    rounds: int = 2000  # of the bootstrap and of the sign flips
    seed: int = 0

    @property
    def digest(self) -> str:
        """The digest of the whole plan."""
        return ids.digest(self)


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One record with both scores, 0 … 1. A score that is missing is ``None``, with the reason in its gap."""

    task_digest: str
    cluster: str  # near-duplicates share one and count as one observation
    champion: float | None
    candidate: float | None
    champion_gap: str | None = None  # ``infra_error``, ``input_error``, ``no_run``, ``no_grade``
    candidate_gap: str | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """``promote`` or ``hold``, and every number that led to it; ``statistics["reasons"]`` says what held it back."""

    verdict: str
    statistics: dict[str, Any]


def decide(plan: Plan, pairs: Sequence[Pair]) -> Verdict:
    """Compare a candidate with the champion on paired records. The same pairs in any order give the same verdict.

    Raises ``UsageError`` when the scores do not fit the plan's test.
    """
    usable = [pair for pair in pairs if not pair.champion_gap == pair.candidate_gap == INPUT_ERROR]
    scored = _scored(plan, usable)
    statistics = _coverage(pairs, len(usable), len(scored)) | (
        _comparison(plan, scored) if scored else {"p_value": None}
    )
    reasons = _reasons(plan, statistics)
    return Verdict(verdict="hold" if reasons else "promote", statistics=statistics | {"reasons": reasons})


class _Scored(NamedTuple):
    """A pair with both scores; sorts by task, so that the order of the rows never matters."""

    task_digest: str
    cluster: str
    champion: float
    candidate: float


def _scored(plan: Plan, pairs: Iterable[Pair]) -> list[_Scored]:
    scored = [
        _Scored(pair.task_digest, pair.cluster, pair.champion, pair.candidate)
        for pair in pairs
        if pair.champion is not None and pair.candidate is not None
    ]
    values = {pair.champion for pair in scored} | {pair.candidate for pair in scored}
    if plan.test == "mcnemar_exact" and not values <= {0.0, 1.0}:
        raise UsageError(f"'{plan.metric}' has scores between 0 and 1; plan the test 'sign_flip' for it")
    if any(not 0 <= value <= 1 for value in values):
        raise UsageError(f"'{plan.metric}' has scores outside 0 … 1; grade on that scale")
    return sorted(scored)


def _coverage(pairs: Sequence[Pair], usable: int, scored: int) -> dict[str, Any]:
    gaps = [("champion", pair.champion_gap) for pair in pairs] + [("candidate", pair.candidate_gap) for pair in pairs]
    return {
        "n": scored,
        "records": len(pairs),
        "coverage": scored / usable if usable else 0.0,
        "gaps": {
            side: dict(sorted(Counter(gap for name, gap in gaps if name == side and gap).items()))
            for side in ("champion", "candidate")
        },
    }


def _comparison(plan: Plan, scored: Sequence[_Scored]) -> dict[str, Any]:
    clusters = _clusters(scored)
    sums = [total for total, _ in clusters]
    wins, losses = sum(total > 0 for total in sums), sum(total < 0 for total in sums)
    exact = plan.test == "mcnemar_exact"
    low, high = bootstrap_interval(clusters, plan.rounds, plan.seed)
    return {
        "clusters": len(clusters),
        "champion": _side([pair.champion for pair in scored]),
        "candidate": _side([pair.candidate for pair in scored]),
        "difference": {"mean": math.fsum(sums) / len(scored), "low": low, "high": high},
        "wins": wins,
        "losses": losses,
        "ties": len(clusters) - wins - losses,
        "p_value": mcnemar_p(wins, losses) if exact else sign_flip_p(sums, plan.rounds, plan.seed),
    }


def _clusters(scored: Iterable[_Scored]) -> list[tuple[float, int]]:
    """Return each cluster's sum of differences and its size: near-duplicates are one observation."""
    by_cluster: dict[str, list[float]] = {}
    for pair in scored:
        by_cluster.setdefault(pair.cluster, []).append(pair.candidate - pair.champion)
    return [(math.fsum(values), len(values)) for values in by_cluster.values()]


def _side(scores: Sequence[float]) -> dict[str, float]:
    total = math.fsum(scores)
    low, high = wilson_interval(total, len(scores))
    return {"score": total / len(scores), "low": low, "high": high}


def _reasons(plan: Plan, statistics: Mapping[str, Any]) -> list[str]:
    """Say what keeps the candidate from promotion; nothing means promote."""
    if not statistics["n"]:
        return ["no record has a score of both"]
    reasons = []
    if statistics["coverage"] < plan.min_coverage:
        reasons.append(f"coverage {statistics['coverage']:.1%} is under {plan.min_coverage:.0%}")
    if statistics["clusters"] < plan.min_n:
        reasons.append(f"{statistics['clusters']} independent records are fewer than {plan.min_n}")
    if not statistics["p_value"] < plan.alpha:
        reasons.append(f"p = {statistics['p_value']:.3g} is not under {plan.alpha:g}")
    if not statistics["difference"]["low"] > -plan.margin:
        reasons.append(f"the difference may be as low as {statistics['difference']['low']:+.1%}")
    return reasons
