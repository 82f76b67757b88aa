"""Grades by code: right, wrong, and no grade at all."""

import pytest

from doorstep.errors import UsageError
from doorstep.grading.graders import WRONG, Abstention, CodeGrader, Score

ORDER = {"sku": "A1", "qty": 3, "note": None}


@pytest.mark.parametrize(
    ("value", "exact", "reward"),
    [
        ({"sku": " a1", "qty": 3.0, "note": None}, 1.0, 1.0),
        ({"sku": "A1", "qty": 4, "note": None}, 0.0, 2 / 3),
        ({"sku": "A1", "qty": 3}, 1.0, 1.0),
        ({"sku": "A1", "qty": 3, "note": None, "extra": 1}, 0.0, 1.0),
        ({"sku": "A1", "qty": True, "note": None}, 0.0, 2 / 3),
        ("A1", 0.0, 0.0),
        (None, 0.0, 0.0),
    ],
)
def test_objects_are_graded_field_by_field(value, exact, reward):
    score = CodeGrader().score(value, ORDER)
    assert (score.exact, score.reward) == (exact, pytest.approx(reward))


@pytest.mark.parametrize(
    ("value", "expected", "exact"),
    [
        ("  Ja,  bitte ", "ja, bitte", 1.0),
        ("ja", "nein", 0.0),
        ([{"q": 1}], [{"q": 1.0}], 1.0),
        ([1], [1, 2], 0.0),
        (1, True, 0.0),
        ("3", 3, 1.0),
    ],
)
def test_all_else_is_graded_by_normalised_equality(value, expected, exact):
    assert CodeGrader().score(value, expected).exact == exact


def test_a_function_of_the_workflow_may_give_a_number_or_fields():
    assert CodeGrader(lambda value, expected: 0.5).score(1, 2) == Score(exact=0.0, reward=0.5)
    fields = CodeGrader(lambda value, expected: {"a": 1.0, "b": 0.5, "exact": 0.0}).score(1, 2)
    assert fields == Score(exact=0.0, reward=0.75, fields={"a": 1.0, "b": 0.5})


def test_all_fields_right_is_exact_when_nothing_else_is_said():
    assert CodeGrader(lambda value, expected: {"a": 1.0, "b": True}).score(1, 2).exact == 1.0


def test_a_grader_that_cannot_take_this_answer_says_that_it_is_wrong():
    assert CodeGrader(lambda value, expected: float(value["qty"] == expected["qty"])).score("text", {"qty": 1}) == WRONG


def test_a_grader_that_fails_on_the_right_answer_too_gives_no_grade():
    def without_its_database(value, expected):
        raise OSError("orders.db is not there")

    score = CodeGrader(without_its_database).score("x", "x")
    assert score == Abstention(why="grade() failed: OSError: orders.db is not there")


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_grade_is_an_abstention_and_never_a_zero(nothing):
    assert isinstance(CodeGrader(lambda value, expected: nothing).score(1, 2), Abstention)


@pytest.mark.parametrize("grade", [2.0, -0.1, float("nan"), "right", {"a": 50.0}, {"exact": None}])
def test_what_is_no_grade_stops_with_the_way_to_mend_it(grade):
    with pytest.raises(UsageError, match="must give numbers from 0"):
        CodeGrader(lambda value, expected: grade).score(1, 2)


def test_the_version_is_that_of_the_code_and_the_same_in_every_process():
    assert CodeGrader().version == CodeGrader().version
    assert CodeGrader(_Object()).version == CodeGrader(_Object()).version
    assert CodeGrader().version != CodeGrader(lambda value, expected: 1.0).version


class _Object:
    def __call__(self, value, expected):
        return 1.0
