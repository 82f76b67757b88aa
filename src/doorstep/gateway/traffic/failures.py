"""What a failure of an upstream means for the next try: pure, of its status, its words and its headers."""

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import StrEnum


class Failure(StrEnum):
    """The classes of failures."""

    BUSY = "busy"  # this key has had enough for the moment: another key, or later
    KEY = "key"  # this key is not accepted, or its account is empty: another key
    PASSING = "passing"  # trouble upstream or on the way: the same again, a little later
    SLOW = "slow"  # a clock ran out: somebody else, since the same again would take as long again
    TOO_LONG = "too_long"  # does not fit this model: perhaps another one
    FINAL = "final"  # the request itself is at fault: nobody would answer it


# 409 is a lock's timeout, which the providers' own SDKs try again.
_PASSING = frozenset({0, 408, 409, 425})

# As the providers say it: OpenAI and those like it, Anthropic, Google, vLLM. No status tells these cases apart.
_TOO_LONG = (
    "context_length_exceeded", "maximum context length", "context window", "prompt is too long", "input is too long",
    "input token count", "maximum input length", "longer than the maximum model length",
)  # fmt: skip
_NO_MONEY = ("insufficient_quota", "credit balance is too low")


def classify(status: int, said: str) -> Failure:
    """Return the class of a failure. ``status`` 0: there was no answer; ``said`` is the error's text or body."""
    words = said.lower()
    if status in (400, 429) and any(mark in words for mark in _NO_MONEY):
        return Failure.KEY
    if status in (400, 413, 422) and any(mark in words for mark in _TOO_LONG):
        return Failure.TOO_LONG
    match status:
        case 429:
            return Failure.BUSY
        case 401 | 402 | 403:
            return Failure.KEY
        case 504:
            return Failure.SLOW
        case _:
            return Failure.PASSING if status >= 500 or status in _PASSING else Failure.FINAL


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Return the seconds that an upstream asks to wait, if it does. ``wall`` is now, for one that gives a date.

    ``retry-after-ms`` is finer and comes first, as in the providers' own SDKs.
    """
    if (ms := _number(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    given = headers.get("retry-after")
    if (seconds := _number(given)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(given or "").timestamp() - wall)
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
