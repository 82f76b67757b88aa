"""What both front doors of the gateway do alike: addresses, run ids, limits of size, and who may come in."""

import re
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.dialects import table
from doorstep.gateway.dialects.base import Dialect

BODY_BYTES = 10_000_000
KNOWN_BYTES = 500  # of a path that is kept as known: whoever sends others fills no memory
NO_KEY = "no valid key: send one as 'Authorization: Bearer …'; doorstep keys create makes one"
RUN_HEADER = b"x-doorstep-run-id"
_RUN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_RUN_PATH = re.compile(rb"/runs/([^/?]+)(/[^?]*)")


class Address(msgspec.Struct, frozen=True):
    """Where a call was sent: the dialect of the path, and the run of a run-scoped one."""

    dialect: Dialect
    run_id: str | None


def address_of(url: bytes) -> Address | None:
    """Return what a POST to this path is for, or None when it is no model call."""
    return _known(url) if len(url) <= KNOWN_BYTES else _read(url)


def _read(url: bytes) -> Address | None:
    path, _, query = url.partition(b"?")
    run_id = None
    if found := _RUN_PATH.fullmatch(path):
        run_id, path = found[1].decode("latin-1"), found[2]
    dialect = table.by_path(path.decode("latin-1"), query.decode("latin-1"))
    return None if dialect is None else Address(dialect, run_id)


_known = lru_cache(maxsize=4096)(_read)


def run_of(address: Address, headers: Mapping[bytes, bytes]) -> str | None:
    """Return the run that a call belongs to: of its path, or of its header."""
    run_id = address.run_id
    if run_id is None:
        given = headers.get(RUN_HEADER)
        if given is None:
            return None
        run_id = given.decode("latin-1")
    if _RUN_ID.fullmatch(run_id) is None:
        raise BadInput("run id", f"{run_id[:140]!r} is none: use 1 to 128 letters, digits and . _ : -")
    return run_id


def most_bytes(dialect: Dialect) -> int:
    """Return how large a body may be: pictures and sound need more room."""
    return getattr(dialect, "MOST_BYTES", BODY_BYTES)


def too_large(most: int) -> str:
    """Say that a body is over its limit."""
    return f"the request is larger than {most // 1_000_000} MB"
