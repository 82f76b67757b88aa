"""How far the record was sent out, kept in ``telemetry.json`` of the data folder."""

from pathlib import Path

import msgspec

from doorstep import ids
from doorstep.store import Store, arrivals
from doorstep.types import Call, Run

FILE = "telemetry.json"


class Cursor(msgspec.Struct, frozen=True):
    """The places up to which everything was sent. ``record`` is the digest of the store's address."""

    record: str
    calls: int
    runs: int


def begin(file: Path, address: str, store: Store) -> None:
    """Make a cursor where there is none for this record: what comes from now on is sent, not all that ever was."""
    newest = Cursor(record_of(address), arrivals.newest(store, Call), arrivals.newest(store, Run))
    known = load(file)
    if known is None or known.record != newest.record or known.calls > newest.calls or known.runs > newest.runs:
        save(file, newest)


def load(file: Path) -> Cursor | None:
    """Return the cursor, if there is a readable one."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Cursor)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def save(file: Path, cursor: Cursor) -> None:
    """Keep the cursor; a kill leaves the one before, and what follows it is sent again."""
    part = file.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(cursor))
    part.replace(file)


def record_of(address: str) -> str:
    """Return what tells a record from others: no address, since it may hold a password."""
    return ids.digest(address.encode())
