"""Views: what the facts add up to. Pure functions over records, and the few look-ups that fetch those records."""

import struct
from collections.abc import Iterable

import msgspec

from doorstep.store.store import Store
from doorstep.types import Call, Grade, Run, TokenSpan


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The exact tokens of one call. ``logprobs`` has one entry per id, ``None`` for ids that were not sampled."""

    ids: list[int]
    logprobs: list[float | None]


def current(grades: Iterable[Grade]) -> list[Grade]:
    """Return the grades that count: of each run and name the newest one that no other supersedes."""
    rows = sorted(grades, key=lambda grade: (grade.at_us, grade.grade_id))
    superseded = {grade.supersedes for grade in rows}
    newest = {(grade.run_id, grade.name): grade for grade in rows if grade.grade_id not in superseded}
    return list(newest.values())


def grades_of(store: Store, run_id: str) -> list[Grade]:
    """Return the grades of a run that count, one per name."""
    return current(store.select(Grade, run_id=run_id))


def gaps_of(store: Store, run_id: str) -> list[str]:
    """Return what the record of a run lacks, in the run itself or in one of its calls.

    A call that was answered but could not be kept may come to light only after the run's row was written.
    """
    run = store.get(Run, run_id)
    found = {gap for call in store.select(Call, run_id=run_id) for gap in call.gaps}
    return sorted(found.union(run.gaps if run else ()))


def tokens_of(store: Store, call_id: str) -> Tokens:
    """Return the ids that the engine saw and returned in a call, in order."""
    return concatenate(store.select(TokenSpan, call_id=call_id))


def concatenate(spans: Iterable[TokenSpan]) -> Tokens:
    """Join spans by ``seq``."""
    ids: list[int] = []
    logprobs: list[float | None] = []
    for span in sorted(spans, key=lambda span: span.seq):
        part = struct.unpack(f"<{len(span.ids) // 4}i", span.ids)
        ids += part
        logprobs += [None] * len(part) if span.logprobs is None else struct.unpack(f"<{len(part)}f", span.logprobs)
    return Tokens(ids=ids, logprobs=logprobs)
