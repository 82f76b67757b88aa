"""What must hold of a single record before it is written. Checked at the one door, so no reader has to doubt it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from doorstep import ids
from doorstep.errors import StoreError
from doorstep.types import Grade, Record, TokenSpan

ID_BYTES = 4  # int32
LOGPROB_BYTES = 4  # float32


def check(record: Record) -> None:
    """Raise ``StoreError`` when a record contradicts itself."""
    for rule in RULES.get(type(record), ()):
        problem = rule(record)
        if problem:
            raise StoreError(
                f"{type(record).__name__} {getattr(record, record.__struct_fields__[0])} was refused: {problem}"
            )


def check_blob(digest: str, body: bytes) -> None:
    """Raise ``StoreError`` when a body is not what its digest says."""
    if ids.digest(body) != digest:
        raise StoreError(f"Body {digest} was refused: its bytes have the digest {ids.digest(body)}.")


def _span_is_whole(span: TokenSpan) -> str | None:
    if len(span.ids) % ID_BYTES:
        return "ids must be whole int32 values"
    if span.logprobs is not None and len(span.logprobs) // LOGPROB_BYTES != len(span.ids) // ID_BYTES:
        return "logprobs must have one float32 per token id"
    return None


def _sampled_span_is_exact(span: TokenSpan) -> str | None:
    if span.sampled and not span.exact:
        return "sampled tokens are exact by definition; text that was tokenised again is neither"
    if span.sampled and span.logprobs is None:
        return "every sampled token has a log-probability"
    return None


def _grade_is_known_or_explained(grade: Grade) -> str | None:
    if grade.value is None and not grade.why:
        return "a grade without a value says why (the grader abstained or failed)"
    if grade.value is not None and not math.isfinite(grade.value):
        return "a grade's value is a finite number; an unknown one is None with the reason in 'why'"
    return None


RULES: Mapping[type[Record], tuple[Callable[[Any], str | None], ...]] = {
    TokenSpan: (_span_is_whole, _sampled_span_is_exact),
    Grade: (_grade_is_known_or_explained,),
}
