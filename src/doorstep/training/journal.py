"""The journal: which operations were accepted, and how each ended, so that a server that was killed answers as before.

One file that only grows, until what counts of it is written anew. A record is one ``write`` and no ``fsync``: what a
process has written outlives its end, kill -9 too, for the system's page cache holds it. When the machine itself loses
power, the last seconds may be gone, and their operations are then unknown.
"""

import logging
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from doorstep.errors import StoreError

log = logging.getLogger(__name__)

COMPACT_BYTES = 128 << 20  # a file that is smaller is left as it is until the next start
_HEAD = 8  # bytes before each record: its length and its CRC-32


class Accepted(msgspec.Struct, frozen=True, tag="accepted", array_like=True):
    """An operation was taken; ``kind`` is the name of its address."""

    request_id: str
    owner: str
    kind: str


class Ended(msgspec.Struct, frozen=True, tag="ended", array_like=True):
    """An operation has its answer, as it goes over the wire."""

    request_id: str
    body: bytes
    media_type: str
    fetched: bool = False


class Fetched(msgspec.Struct, frozen=True, tag="fetched", array_like=True):
    """The client has got the answer; it may ask again."""

    request_id: str


class Dropped(msgspec.Struct, frozen=True, tag="dropped", array_like=True):
    """Nobody will ask for an answer again."""

    request_id: str


class Forgotten(msgspec.Struct, frozen=True, tag="forgotten", array_like=True):
    """Nor for any whose request id begins so."""

    prefix: str


Record = Accepted | Ended | Fetched | Dropped | Forgotten
Past = dict[str, tuple[Accepted, Ended | None]]  # by request id


class Journal:
    """One file. ``past`` is what it held when it was opened: what was accepted, with the answer if there is one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None
        self._size = self._compacted = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.past = _past(_records(file.read_bytes() if file.exists() else b""))
            self._rewrite(record for pair in self.past.values() for record in pair if record is not None)
        except OSError as error:
            raise StoreError(f"{file} cannot be read and written ({error.strerror}). Make room, or mend it.") from None

    def write(self, record: Record) -> None:
        """Add a record, until it is closed. A full disk costs what the journal is for, not the operation."""
        if self._descriptor is None:
            return
        data = _framed(record)
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            log.error("%s: %s; what ends now is unknown after a restart", self._file, error.strerror)
            return
        if written == len(data):
            self._size += written
        else:  # the disk is full: half a record would hide those after it
            os.ftruncate(self._descriptor, self._size)

    @property
    def large(self) -> bool:
        """Whether it is time to write anew what counts."""
        return self._size > max(COMPACT_BYTES, 2 * self._compacted)

    def compact(self, records: Iterable[Record]) -> None:
        """Replace the file by one that holds these records; when that cannot be, it grows on."""
        try:
            self._rewrite(records)
        except OSError as error:
            log.error("%s cannot be written anew and grows on: %s", self._file, error.strerror)
            self._compacted = self._size

    def close(self) -> None:
        """Let the file go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _rewrite(self, records: Iterable[Record]) -> None:
        aside = self._file.with_suffix(".new")
        with aside.open("wb") as out:
            for record in records:
                out.write(_framed(record))
        aside.replace(self._file)
        self.close()
        self._descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND)
        self._size = self._compacted = os.fstat(self._descriptor).st_size


def _framed(record: Record) -> bytes:
    data = msgspec.msgpack.encode(record)
    return len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data


def _records(data: bytes) -> Iterable[Record]:
    """Give the whole records; what a kill cut off at the end is none."""
    decode = msgspec.msgpack.Decoder(Record).decode
    at = 0
    while at + _HEAD <= len(data):
        length, check = (int.from_bytes(data[at + part : at + part + 4], "little") for part in (0, 4))
        record = data[at + _HEAD : at + _HEAD + length]
        if len(record) < length or zlib.crc32(record) != check:
            log.warning("the journal ends in a record that was cut off; it is left out")
            return
        with suppress(msgspec.ValidationError):  # of a newer version
            yield decode(record)
        at += _HEAD + length


def _past(records: Iterable[Record]) -> Past:
    past: Past = {}
    for record in records:
        match record:
            case Accepted(request_id):
                past[request_id] = (record, None)
            case Ended(request_id) if request_id in past:  # else the disk was full when it was accepted
                past[request_id] = (past[request_id][0], record)
            case Fetched(request_id) if request_id in past:
                accepted, ended = past[request_id]
                past[request_id] = (accepted, ended and msgspec.structs.replace(ended, fetched=True))
            case Dropped(request_id):
                past.pop(request_id, None)
            case Forgotten(prefix):
                past = {request_id: pair for request_id, pair in past.items() if not request_id.startswith(prefix)}
    return past
