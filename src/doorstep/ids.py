"""Identifiers, times and digests: made here, in logic, never in SQL.

Ids sort by the time they were made. Times are integer microseconds since the Unix epoch, UTC.
Digests are lower-case hexadecimal SHA-256 of canonical bytes.
"""

import hashlib
import random
import time

import msgspec

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]  # two characters at a time: ids are hot
_random = random.Random().getrandbits  # seeded by the system; ids are no secrets, and asking it each time is slow
_encoder = msgspec.json.Encoder(order="sorted")


def now_us() -> int:
    """Return the time now in microseconds since the epoch, UTC."""
    return time.time_ns() // 1000


def new_id(kind: str) -> str:
    """Return a new id such as ``run_01jd…``: 10 characters of time (ms), 16 of randomness (80 bits)."""
    value = (time.time_ns() // 1_000_000 << 80) | _random(80)
    return f"{kind}_{''.join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])}"


def canonical(value: object) -> bytes:
    """Return the one JSON spelling of a value: keys sorted, no spaces, UTF-8."""
    return _encoder.encode(value)


def digest(value: object) -> str:
    """Return the SHA-256 of bytes as they are, or of any other value's canonical JSON."""
    data = value if isinstance(value, bytes) else canonical(value)
    return hashlib.sha256(data).hexdigest()
