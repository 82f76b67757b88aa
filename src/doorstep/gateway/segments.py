"""Segments: append-only files of captures that outlive a killed process until the store has them.

A frame is three lengths, the capture without its bodies as MessagePack, and the two bodies as they are, written by one
``writev``: the operating system has it then, whatever happens to this process. A writer's segments are one stream; each
is named after the writer and the place in the stream where it begins, so that a segment is complete as soon as one
begins where it ends. Writer and reader both hold a shared lock on a segment: one that can be locked alone has no owner.
"""

import fcntl
import os
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from doorstep.gateway.capture import Capture

ENDING = ".segment"
DAMAGED = ".damaged"
_LENGTHS = struct.Struct(">III")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Capture)


class Damaged(Exception):
    """The bytes of a frame are no capture; ``captures`` are the whole ones before it."""

    def __init__(self, captures: list[Capture]) -> None:
        super().__init__()
        self.captures = captures


class Writer:
    """The segment that is written now. ``at`` is the place in the stream up to which frames are whole."""

    def __init__(self, folder: Path, name: str) -> None:
        self.at = 0
        self._folder = folder
        self._name = name
        self._full: deque[tuple[int, int]] = deque()  # segments before it: where they end, files
        self._begin()

    @property
    def size(self) -> int:
        """Bytes in this segment."""
        return self.at - self._start

    def append(self, capture: Capture) -> None:
        """Write one frame; raises ``OSError`` and leaves the file as it was when the disk does not take it."""
        request, response = capture.request, capture.response
        rest = _encoder.encode(msgspec.structs.replace(capture, request=b"", response=b""))
        head = _LENGTHS.pack(len(rest), len(request), len(response)) + rest
        whole = len(head) + len(request) + len(response)
        if (written := os.writev(self._file, (head, request, response))) < whole:
            os.ftruncate(self._file, self.size)
            raise OSError(f"only {written} of {whole} bytes were written")
        self.at += whole

    def turn(self, taken: int) -> None:
        """Begin the next segment. The reader has the stream up to ``taken`` and deletes what it has."""
        full = self._file
        self._begin()
        self._full.append((self.at, full))
        while self._full and self._full[0][0] <= taken:
            os.close(self._full.popleft()[1])

    def close(self) -> None:
        """Let go of all segments; those that nobody has taken stay."""
        for _, file in self._full:
            os.close(file)
        os.close(self._file)

    def _begin(self) -> None:
        path = self._folder / segment_name(self._name, self.at)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_SH)
        self._start = self.at


class Reader:
    """One segment being read, from its beginning."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self.offset = 0  # after the last frame that was read
        self._file = file

    @classmethod
    def beside(cls, path: Path) -> "Reader":
        """Read a segment that a living process writes."""
        file = os.open(path, os.O_RDONLY)
        fcntl.flock(file, fcntl.LOCK_SH)
        return cls(path, file)

    @classmethod
    def alone(cls, path: Path) -> "Reader | None":
        """Read a segment that no process owns any more; None when it has an owner, or has gone."""
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return cls(path, file)

    def read(self, most: int) -> list[Capture]:
        """Return the next whole frames, about ``most`` bytes or one frame; a frame that is cut short is not there."""
        found: list[Capture] = []
        data, at = os.pread(self._file, most, self.offset), 0
        while at + _LENGTHS.size <= len(data):
            rest, request, response = _LENGTHS.unpack_from(data, at)
            end = at + _LENGTHS.size + rest + request + response
            if end > len(data):
                if found or end - at <= most:
                    break
                data = os.pread(self._file, end, self.offset)  # one frame that is larger than all that was asked for
                if end > len(data):
                    break
            try:
                found.append(_capture(data, at + _LENGTHS.size, rest, request, response))
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise Damaged(found) from None
            at = end
        self.offset += at
        return found

    def has_more(self) -> bool:
        """Tell whether there is something after what was read."""
        return os.fstat(self._file).st_size > self.offset

    def delete(self) -> None:
        """Remove the file, whose captures are in the store."""
        self.path.unlink(missing_ok=True)
        os.close(self._file)

    def set_aside(self) -> Path:
        """Keep the file under another name as well, and go past what it holds."""
        kept = self.path.with_suffix(DAMAGED)
        kept.hardlink_to(self.path)
        self.offset = os.fstat(self._file).st_size
        return kept


def segment_name(writer: str, start: int) -> str:
    """Return the file name of a writer's segment that begins at a place of its stream."""
    return f"{writer}-{start:016}{ENDING}"


def first_place(folder: Path, writer: str) -> int:
    """Return where the oldest segment of a living writer begins."""
    oldest = min(folder.glob(f"{writer}-*{ENDING}"))
    return int(oldest.stem.rpartition("-")[2])


def leftovers(folder: Path) -> Iterator[Reader]:
    """Yield the segments that no process owns any more, oldest first."""
    for path in sorted(folder.glob(f"*{ENDING}")):
        if reader := Reader.alone(path):
            yield reader


def _capture(data: bytes, at: int, rest: int, request: int, response: int) -> Capture:
    bodies = at + rest
    middle = bodies + request
    return msgspec.structs.replace(
        _decoder.decode(memoryview(data)[at:bodies]),
        request=data[bodies:middle],
        response=data[middle : middle + response],
    )
