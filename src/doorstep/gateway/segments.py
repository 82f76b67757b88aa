"""Segments: append-only files of captures that outlive a killed process until the store has them.

A frame is four bytes of length and a MessagePack body, written by one ``write``: the operating system has it then,
whatever happens to this process. A segment is locked by the process that writes it, so that another one that starts on
the same folder replays only what has no owner.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from doorstep import ids
from doorstep.errors import StoreError
from doorstep.gateway.capture import Capture

ENDING = ".segment"
_LENGTH = 4
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Capture)


class Segment:
    """One file that this process writes and reads. Appending and reading may be in different threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # bytes of whole frames
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    @classmethod
    def create(cls, folder: Path) -> "Segment":
        """Begin a new segment in a folder."""
        return cls(folder / f"{ids.new_id('seg')}{ENDING}")

    def append(self, capture: Capture) -> None:
        """Write one frame; raises ``OSError`` and leaves the file as it was when the disk does not take it."""
        body = _encoder.encode(capture)
        frame = len(body).to_bytes(_LENGTH, "big") + body
        if (written := os.write(self._file, frame)) < len(frame):
            os.ftruncate(self._file, self.size)
            raise OSError(f"only {written} of {len(frame)} bytes were written")
        self.size += len(frame)

    def read(self, offset: int, most: int) -> tuple[list[Capture], int]:
        """Return captures from ``offset`` on, ``most`` bytes or one frame, and the offset after them."""
        size = self.size
        end = offset
        found = []
        while end < size and (end == offset or end - offset < most):
            length = int.from_bytes(os.pread(self._file, _LENGTH, end), "big")
            found.append(_decoder.decode(os.pread(self._file, length, end + _LENGTH)))
            end += _LENGTH + length
        return found, end

    def delete(self) -> None:
        """Remove the file, whose captures are in the store."""
        self.path.unlink(missing_ok=True)
        os.close(self._file)


def leftovers(folder: Path) -> Iterator[tuple[Path, list[Capture]]]:
    """Yield the segments that a process left behind when it was killed, each with its whole frames."""
    for path in sorted(folder.glob(f"*{ENDING}")):
        file = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # another process is writing it
        else:
            yield path, _frames(path)
        finally:
            os.close(file)


def _frames(path: Path) -> list[Capture]:
    """Return the whole frames; a frame that a kill cut short was never acknowledged."""
    data, found, at = path.read_bytes(), [], 0
    while at + _LENGTH <= len(data):
        length = int.from_bytes(data[at : at + _LENGTH], "big")
        body = data[at + _LENGTH : at + _LENGTH + length]
        if len(body) < length:
            break
        try:
            found.append(_decoder.decode(body))
        except msgspec.DecodeError as error:
            raise StoreError(f"{path} holds calls that cannot be read ({error}). Move it away to go on.") from None
        at += _LENGTH + length
    return found
