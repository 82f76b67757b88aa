"""Confidence: what share of answers with it was really right."""

from hypothesis import given
from hypothesis import strategies as st

from doorstep.grading.calibration import fit

ANSWERS = st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]), st.booleans()), max_size=60)


def test_a_higher_confidence_is_as_right_as_it_was():
    curve = fit([0.2] * 10 + [0.9] * 19, [False] * 10 + [True] * 19)
    assert curve.probability(0.95) == 19 / 20
    assert curve.probability(0.5) == 0.0


def test_answers_of_equal_confidence_are_one_step():
    curve = fit([0.9] * 10, [True, False] * 5)
    assert curve.probability(0.9) == 5 / 11


def test_a_fall_is_pooled():
    curve = fit([0.1, 0.2, 0.3, 0.4], [True, True, False, False])
    assert (curve.raw, curve.right) == ([0.1], [2 / 5])


def test_without_answers_or_without_confidence_nothing_is_claimed():
    assert fit([], []).probability(1.0) == 0.0
    assert fit([0.5], [True]).probability(None) is None


@given(ANSWERS)
def test_it_never_falls_and_never_claims_certainty(answers):
    curve = fit([confidence for confidence, _ in answers], [right for _, right in answers])
    values = [curve.probability(step / 20) for step in range(21)]
    assert values == sorted(values)
    assert all(0 <= value < 1 for value in values)


@given(ANSWERS, st.randoms())
def test_the_order_of_the_answers_does_not_matter(answers, random):
    shuffled = random.sample(answers, len(answers))
    assert fit(*_columns(answers)) == fit(*_columns(shuffled))


def _columns(answers):
    return [confidence for confidence, _ in answers], [right for _, right in answers]
