"""The gate promotes what is better, holds what is not proven, and is fooled no more often than its alpha."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doorstep.errors import UsageError
from doorstep.routing.gate import Pair, Plan, decide

FAST = Plan(rounds=200)


def pairs(scores, cluster=None):
    return [
        Pair(task_digest=f"d{i:04}", cluster=cluster or f"c{i:04}", champion=champion, candidate=candidate)
        for i, (champion, candidate) in enumerate(scores)
    ]


def test_a_better_candidate_is_promoted_with_its_evidence():
    made = decide(FAST, pairs([(0.0, 1.0)] * 40 + [(1.0, 1.0)] * 50 + [(1.0, 0.0)] * 10))
    figures = made.statistics
    assert (made.verdict, figures["reasons"]) == ("promote", [])
    assert (figures["n"], figures["wins"], figures["losses"], figures["ties"]) == (100, 40, 10, 50)
    assert figures["champion"]["score"] == 0.6
    assert figures["candidate"]["low"] < 0.9 < figures["candidate"]["high"]
    assert figures["difference"]["mean"] == pytest.approx(0.3)
    assert figures["p_value"] == pytest.approx(1.193e-05, rel=1e-3)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([(1.0, 1.0)] * 100, "p = 1 is not under 0.01"),
        ([(1.0, 0.0)] * 100, "the difference may be as low as -100.0%"),
        ([(0.0, 1.0)] * 20, "20 independent records are fewer than 30"),
        ([(0.0, 1.0)] * 60 + [(0.0, None)] * 40, "coverage 60.0% is under 95%"),
        ([(None, None)] * 40, "no record has a score of both"),
        ([], "no record has a score of both"),
    ],
)
def test_what_is_not_proven_is_held_and_says_why(scores, reason):
    made = decide(FAST, pairs(scores))
    assert made.verdict == "hold"
    assert reason in made.statistics["reasons"]


def test_missing_scores_are_counted_by_their_reason_never_as_zero():
    missing = [
        Pair(task_digest="x", cluster="x", champion=1.0, candidate=None, candidate_gap="infra_error"),
        Pair(
            task_digest="y",
            cluster="y",
            champion=None,
            candidate=None,
            champion_gap="input_error",
            candidate_gap="input_error",
        ),
    ]
    figures = decide(FAST, pairs([(0.0, 1.0)] * 49) + missing).statistics
    assert (figures["n"], figures["records"], figures["coverage"]) == (49, 51, 49 / 50)
    assert figures["gaps"] == {"champion": {"input_error": 1}, "candidate": {"infra_error": 1, "input_error": 1}}
    assert figures["candidate"]["score"] == 1.0


def test_near_duplicates_count_once():
    made = decide(FAST, pairs([(0.0, 1.0)] * 100, cluster="same"))
    assert (made.verdict, made.statistics["clusters"], made.statistics["p_value"]) == ("hold", 1, 0.5)


def test_graded_scores_take_sign_flips():
    rng = random.Random(0)
    scores = [(score, min(1.0, score + 0.1 + 0.1 * rng.random())) for score in (rng.random() for _ in range(60))]
    assert decide(Plan(rounds=500, test="sign_flip"), pairs(scores)).verdict == "promote"
    with pytest.raises(UsageError, match="sign_flip"):
        decide(FAST, pairs(scores))
    with pytest.raises(UsageError, match="outside 0 … 1"):
        decide(Plan(test="sign_flip"), pairs([(0.0, 5.0)]))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, None]), st.sampled_from([0.0, 1.0])), max_size=40), st.randoms())
def test_the_order_of_the_rows_never_matters(scores, rng):
    rows = pairs(scores)
    shuffled = rng.sample(rows, len(rows))
    assert decide(FAST, shuffled) == decide(FAST, rows)


@pytest.mark.parametrize("test", ["mcnemar_exact", "sign_flip"])
def test_equal_models_are_promoted_at_most_alpha_of_the_time(test):
    rng, plan, sims = random.Random(11), Plan(rounds=200, alpha=0.05, test=test), 300
    promoted = 0
    for _ in range(sims):
        scores = [(float(rng.random() < 0.6), float(rng.random() < 0.6)) for _ in range(60)]
        promoted += decide(plan, pairs(scores)).verdict == "promote"
    assert promoted / sims <= 0.05 + 2.5 * (0.05 * 0.95 / sims) ** 0.5


def test_shuffled_labels_are_not_promoted():
    rng, promoted = random.Random(2), 0
    champion, candidate = [1.0] * 40 + [0.0] * 60, [1.0] * 85 + [0.0] * 15
    for _ in range(100):
        mixed = rng.sample(champion + candidate, 200)
        promoted += decide(FAST, pairs(zip(mixed[:100], mixed[100:], strict=True))).verdict == "promote"
    assert promoted <= 4


def test_a_plan_is_known_by_its_digest():
    assert Plan().digest == Plan().digest != Plan(alpha=0.05).digest
