"""Graders: a value and what was expected become grades from 0 to 1. Knows no model, run or table."""

import inspect
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from doorstep import ids
from doorstep.errors import UsageError

GradeFunction = Callable[[Any, Any], float | dict[str, float] | None]
EXACT = "exact"


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """``exact`` is 1 when all is right, else 0; ``reward`` is the graded mean of the fields, 0 … 1."""

    exact: float
    reward: float
    fields: dict[str, float] = {}


class Abstention(msgspec.Struct, frozen=True, kw_only=True):
    """No judgement, and why: this is not a zero."""

    why: str


WRONG = Score(exact=0.0, reward=0.0)


class CodeGrader:
    """Grades by code: the workflow's own function, else field by field or by normalised text."""

    def __init__(self, function: GradeFunction | None = None) -> None:
        self._function = function or grade_plain
        self.version = ids.digest(_source(self._function))[:16]

    def score(self, value: Any, expected: Any) -> Score | Abstention:
        """Score one value. ``UsageError`` when the function gives what is no grade.

        When the function raises, it is asked about the right answer: one that takes that one could not read this
        value, which is wrong then; one that fails on both (its database is gone) has said nothing.
        """
        try:
            result = self._function(value, expected)
        except Exception as error:
            return (
                WRONG if self._takes(expected) else Abstention(why=f"grade() failed: {type(error).__name__}: {error}")
            )
        if result is None or result == {}:
            return Abstention(why="grade() gave no grade")
        if not isinstance(result, dict):
            grade = _checked("the grade", result)
            return Score(exact=float(grade == 1.0), reward=grade)
        fields = {key: _checked(f"the grade of '{key}'", part) for key, part in result.items()}
        exact = fields.pop(EXACT, None)
        if exact is None:
            exact = float(all(part == 1.0 for part in fields.values()))
        mean = sum(fields.values()) / len(fields) if fields else exact
        return Score(exact=float(exact == 1.0), reward=mean, fields=fields)

    def _takes(self, expected: Any) -> bool:
        try:
            return self._function(expected, expected) is not None
        except Exception:
            return False


def _checked(what: str, grade: Any) -> float:
    if not isinstance(grade, int | float) or not 0 <= grade <= 1:
        raise UsageError(f"{what} is {grade!r}: grade() in workflow.py must give numbers from 0 (wrong) to 1 (right)")
    return float(grade)


def grade_plain(value: Any, expected: Any) -> dict[str, float]:
    """Objects field by field, all else by normalised equality."""
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            return dict.fromkeys(map(str, expected), 0.0) | {EXACT: 0.0}
        fields = {str(key): float(same(value.get(key), part)) for key, part in expected.items()}
        extra = set(value) - set(expected)
        return fields | {EXACT: float(not extra and all(fields.values()))}
    return {EXACT: float(same(value, expected))}


def same(value: Any, expected: Any) -> bool:
    """Equal up to case, surrounding and repeated spaces, Unicode form, and ``3`` against ``3.0``."""
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(same(value[k], expected[k]) for k in expected)
        )
    if isinstance(expected, list):
        return isinstance(value, list) and len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(expected, bool) or isinstance(value, bool) or expected is None or value is None:
        return value is expected
    if isinstance(expected, int | float) and isinstance(value, int | float):
        return value == expected
    return _normal(value) == _normal(expected)


def _normal(value: Any) -> str:
    return " ".join(unicodedata.normalize("NFKC", str(value)).casefold().split())


def _source(function: Callable[..., Any]) -> bytes:
    """Return the file of a function, since its helpers grade too; of what has no file, its name."""
    try:
        return Path(inspect.getfile(function)).read_bytes()
    except (OSError, TypeError):
        return type(function).__qualname__.encode()
