"""Opinions: what somebody says about a run or a call, and the rows that it becomes. Pure.

Every opinion is kept as it was said. One that says of a whole run how good it was, from 0 to 1, is a grade of the run
too, which counts until a later one of the same name.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from doorstep import ids
from doorstep.errors import BadInput
from doorstep.types import Feedback, Grade, GradeSource

GRADER = "feedback"  # version of the grader of grades that people and outcomes gave
AHEAD_US = 86_400_000_000  # how far a clock may be ahead: what is said to be later would count for ever

Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
Kind = Literal["boolean", "float", "comment", "demonstration", "preference"]


class Opinion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One opinion as it is sent. What is not said about its kind follows from its value."""

    value: Any
    run_id: Id | None = None
    call_id: Id | None = None
    name: Name | None = None  # of the metric; a boolean or a number needs one
    kind: Kind | None = None
    at: datetime | None = None  # when it was so; default: now
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = (
        None  # the sender's own: said twice, it counts once
    )
    source: Literal["human", "outcome"] = "human"

    @property
    def call_ids(self) -> list[str]:
        """The calls that it names, first the one that it is about."""
        found = [] if self.call_id is None else [self.call_id]
        if self.kind == "preference":
            found += [call_id for call_id in self.value.values() if call_id not in found]
        return found


class Preference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of two calls the better one and the other."""

    chosen: Id
    rejected: Id


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The call that another was better than."""

    better_than: Id


def read(value: Any, run_id: str | None = None) -> Opinion:
    """Return a checked opinion, whole: with its kind, its name, and what it is about. ``BadInput`` says what is wrong.

    ``run_id`` is the run of the address that it was sent to.
    """
    opinion = _convert(value, Opinion, "feedback")
    if run_id is not None:
        if opinion.run_id not in (None, run_id):
            raise BadInput("run_id", f"the address says {run_id}, the body {opinion.run_id}; leave one out")
        opinion = msgspec.structs.replace(opinion, run_id=run_id)
    if opinion.at is not None and us_of(opinion.at) > ids.now_us() + AHEAD_US:
        raise BadInput("at", f"{opinion.at.isoformat()} is in the future")
    kind = opinion.kind or _kind_of(opinion.value)
    opinion = msgspec.structs.replace(opinion, kind=kind, name=opinion.name or _name_of(kind))
    opinion = _READ[kind](opinion)
    if opinion.run_id is None and opinion.call_id is None:
        raise BadInput("run_id", "say what it is about: run_id, or call_id")
    return opinion


def rows(
    opinion: Opinion, *, feedback_id: str, at_us: int, graded: str | None, key_id: str | None = None
) -> tuple[Feedback, Grade | None]:
    """Return the row of an opinion, and the grade of the run ``graded`` where it is one."""
    assert opinion.kind is not None and opinion.name is not None  # noqa: PT018 - as read
    source = GradeSource(opinion.source)
    feedback = Feedback(
        feedback_id=feedback_id,
        at_us=at_us,
        run_id=opinion.run_id if opinion.call_id is None else None,
        call_id=opinion.call_id,
        kind=opinion.kind,
        name=opinion.name,
        value=opinion.value,
        source=source,
        key_id=key_id,
    )
    return feedback, grade_of(feedback, graded)


def grade_of(feedback: Feedback, run_id: str | None) -> Grade | None:
    """Return what an opinion is as a grade of a run; None where it is no judgement from 0 to 1."""
    value = feedback.value
    if run_id is None or feedback.kind not in ("boolean", "float") or not 0 <= value <= 1:
        return None
    return Grade(
        grade_id="grade_" + feedback.feedback_id.partition("_")[2],
        run_id=run_id,
        name=feedback.name,
        value=float(value),
        source=feedback.source,
        grader_version=GRADER,
        at_us=feedback.at_us,
    )


def graded_run(opinion: Opinion, run_of: Mapping[str, str | None], alone: frozenset[str]) -> str | None:
    """Return the run that an opinion judges: its own, or that of its call where the run has no other call."""
    if opinion.call_id is None:
        return opinion.run_id
    return run_of.get(opinion.call_id) if opinion.call_id in alone else None


def us_of(moment: datetime) -> int:
    """Return a moment in microseconds; one without a zone is in UTC."""
    return round(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1_000_000)


def _convert(value: Any, kind: type[Any], where: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        why, _, path = str(error).partition(" - at `$.")
        raise BadInput(path.rstrip("`") or where, why) from None


def _kind_of(value: Any) -> Kind:
    match value:
        case bool():
            return "boolean"
        case int() | float():
            return "float"
        case str():
            return "comment"
        case {"chosen": _} | {"better_than": _}:
            return "preference"
    raise BadInput("kind", "it does not follow from this value; for an edited answer say demonstration")


def _name_of(kind: Kind) -> str:
    if kind in ("boolean", "float"):
        raise BadInput("name", "say of what, such as accepted")
    return kind


def _boolean(opinion: Opinion) -> Opinion:
    if not isinstance(opinion.value, bool):
        raise BadInput("value", "a boolean is true or false")
    return opinion


def _float(opinion: Opinion) -> Opinion:
    value = opinion.value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, str):
        raise BadInput("value", "a float is a finite number")
    return msgspec.structs.replace(opinion, value=number)


def _comment(opinion: Opinion) -> Opinion:
    if not isinstance(opinion.value, str) or not opinion.value:
        raise BadInput("value", "a comment is a text")
    return opinion


def _demonstration(opinion: Opinion) -> Opinion:
    if opinion.value in (None, "", [], {}):
        raise BadInput("value", "a demonstration is the answer as it should have been")
    return opinion


def _preference(opinion: Opinion) -> Opinion:
    """Return a preference as ``{"chosen", "rejected"}``, about the chosen call."""
    if isinstance(opinion.value, dict) and "better_than" in opinion.value:
        if opinion.call_id is None:
            raise BadInput("call_id", "say which call was better")
        pair = Preference(opinion.call_id, _convert(opinion.value, Comparison, "value").better_than)
    else:
        pair = _convert(opinion.value, Preference, "value")
    if pair.chosen == pair.rejected or opinion.call_id not in (None, pair.chosen):
        raise BadInput("value", "a preference is between two calls, and is about the chosen one")
    return msgspec.structs.replace(opinion, call_id=pair.chosen, value=msgspec.to_builtins(pair))


_READ = {
    "boolean": _boolean,
    "float": _float,
    "comment": _comment,
    "demonstration": _demonstration,
    "preference": _preference,
}
