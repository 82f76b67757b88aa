"""What the recorder and its compactor share: the work, two words, and a few numbers in common memory.

The numbers are there so that neither has to ask the other: ``put`` pays no system call for them.
"""

import mmap
import tempfile
from typing import IO

import msgspec

from doorstep.config import PriceSettings

WAKE, FINISH = b"w", b"q"


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a compactor is to do, the first line of its standard input: a database's address may hold a password."""

    store: str  # path of the file, or URL
    data: str  # folder of the keys, which say how long their calls are kept, and of artefacts
    folder: str  # of segments
    writer: str  # whose segments are followed; those without an owner are taken as well
    progress: int  # file descriptor
    prices: PriceSettings


def common_file() -> IO[bytes]:
    """Return a nameless file for ``Progress``, written already: a disk that is full later does not take it away."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as its recorder
    file.write(bytes(mmap.PAGESIZE))
    file.flush()
    return file


class _Number:
    """One of the numbers."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, owner: "Progress", _kind: type) -> int:
        return owner.numbers[self._index]

    def __set__(self, owner: "Progress", value: int) -> None:
        owner.numbers[self._index] = value


class Progress:
    """How far a recorder's calls have come. The compactor writes it; one that takes over goes on with it."""

    at = _Number(0)  # place in the stream of segments up to which the store has everything
    refused = _Number(1)  # calls that the store would not take
    unpriced = _Number(2)  # calls whose price is not known
    away_since_us = _Number(3)  # since when the store takes nothing; 0: it does
    asleep = _Number(4)  # 1: the compactor waits to be woken

    def __init__(self, file: IO[bytes]) -> None:
        """Share the numbers through a file of ``common_file`` that both processes have open."""
        self.numbers = memoryview(mmap.mmap(file.fileno(), mmap.PAGESIZE)).cast("Q")
