"""The compactor: a process of its own that carries segments into the store. A recorder starts it, and it ends with it.

What it has not taken stays in segments, and the next one takes it. It does not remember how far it came: a call that
the store has already is passed over. While the store is away it waits; calls go on being answered meanwhile.
"""

import gc
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from doorstep import ids
from doorstep.errors import StoreError
from doorstep.gateway import segments
from doorstep.gateway.capture import Capture
from doorstep.gateway.progress import FINISH, Progress, Work
from doorstep.gateway.records import Rows, rows_of
from doorstep.gateway.retention import Retention
from doorstep.gateway.segments import Reader
from doorstep.store import Store
from doorstep.types import Call, Node, Record
from doorstep.value.prices import Pricer

log = logging.getLogger(__name__)

T = TypeVar("T")
BATCH_BYTES = 3_000_000  # of captures in one transaction
GATHER_S = 0.02  # calls of this long come into the store together
SLEEP_S = 1.0  # at most, without being woken; also between looks for segments that lost their owner
RETRY_S = 1.0
NICENESS = 10


class Ended(Exception):
    """This process is to end now."""


class Bell:
    """What the recorder says: that there is something to do, or that it finishes; or that it is not there any more."""

    def __init__(self, file: int) -> None:
        self.finishing = False
        self._file = file

    def wait(self, seconds: float) -> None:
        """Wait for a word of the recorder; raises ``Ended`` when it has gone."""
        if self.finishing or not select.select([self._file], [], [], seconds)[0]:
            return
        words = os.read(self._file, 4096)
        if not words:
            raise Ended
        self.finishing = FINISH in words


class Compactor:
    """Carries the segments of one folder into a store; ``run`` returns when the recorder has finished."""

    def __init__(
        self,
        folder: Path,
        open_store: Callable[[], Store],
        pricer: Pricer,
        retention: Retention,
        progress: Progress,
        bell: Bell,
    ) -> None:
        self._folder = folder
        self._open_store = open_store
        self._pricer = pricer
        self._retention = retention
        self._progress = progress
        self._bell = bell
        self._looked = -SLEEP_S

    def run(self, writer: str) -> None:
        """Carry over what a living process writes until it finishes, and what others left behind."""
        with self._patiently(self._open_store) as self._store:
            place: int | None = segments.first_place(self._folder, writer)
            while place is not None:
                place = self._follow(writer, place)
            self._looked = -SLEEP_S  # once more: what a process left behind that was being killed a moment ago
            self._look_around()

    def _follow(self, writer: str, place: int) -> int | None:
        """Carry over one segment; return where the next one begins, ``None`` when there will be none."""
        reader = Reader.beside(self._folder / segments.segment_name(writer, place))
        while True:
            self._bell.wait(0)
            self._look_around()
            following = self._folder / segments.segment_name(writer, place + reader.offset)
            complete, finishing = reader.offset > 0 and following.exists(), self._bell.finishing  # before reading
            before = reader.offset
            if self._take(reader):
                self._progress.at = place + reader.offset
                if reader.offset - before < BATCH_BYTES // 2:
                    self._bell.wait(GATHER_S)
            elif complete or finishing:
                reader.delete()
                return place + reader.offset if complete else None
            else:
                self._sleep(reader)

    def _sleep(self, reader: Reader) -> None:
        self._progress.asleep = 1
        self._bell.wait(0 if reader.has_more() else SLEEP_S)
        self._progress.asleep = 0

    def _look_around(self) -> None:
        """Carry over what processes left behind that were killed, and forget what is kept long enough."""
        if time.monotonic() - self._looked < SLEEP_S:
            return
        for reader in segments.leftovers(self._folder):
            while self._take(reader):
                self._bell.wait(0)
            reader.delete()
        self._patiently(lambda: self._retention.keep(self._store))
        self._looked = time.monotonic()

    def _take(self, reader: Reader) -> bool:
        """Carry over the next batch of a segment; False when there is none."""
        try:
            captures = reader.read(BATCH_BYTES)
        except segments.Damaged as damage:
            captures = damage.captures
            log.error("%s holds calls that cannot be read; they are kept in %s", reader.path, reader.set_aside())
        if captures:
            self._patiently(lambda: self._commit(captures))
        return bool(captures)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do something with the store, trying again until it can; ``Ended`` when finishing comes first."""
        while True:
            try:
                done = work()
            except StoreError as error:
                if not self._progress.away_since_us:
                    self._progress.away_since_us = ids.now_us()
                    log.error("calls wait to be recorded: %s", error)
                if self._bell.finishing:
                    raise Ended from error
                self._bell.wait(RETRY_S)
            else:
                self._progress.away_since_us = 0
                return done

    def _commit(self, captures: list[Capture]) -> None:
        by_id = {capture.call_id: capture for capture in captures}
        for call_id in self._store.known(Call, by_id.keys()):
            del by_id[call_id]
        if fresh := [rows for capture in by_id.values() if (rows := self._rows(capture))]:
            self._add_or_refuse(fresh)

    def _rows(self, capture: Capture) -> Rows | None:
        try:
            return rows_of(capture, self._pricer.price)
        except Exception:  # one call that is not understood must not keep the others out of the record
            self._progress.refused += 1
            log.exception("call %s was refused", capture.call_id)
            return None

    def _add_or_refuse(self, fresh: list[Rows]) -> None:
        """Leave out what the store refuses, so that it keeps nothing else out; raise when the fault is the store's."""
        try:
            self._add(fresh)
        except StoreError as refusal:
            self._store.prove()  # raises when the store takes nothing at all
            if len(fresh) == 1:
                self._progress.refused += 1
                log.error("call %s was refused: %s", fresh[0].call.call_id, refusal)
                return
            middle = len(fresh) // 2
            self._add_or_refuse(fresh[:middle])
            self._add_or_refuse(fresh[middle:])

    def _add(self, fresh: list[Rows]) -> None:
        nodes = {
            node.node_id: node for rows in reversed(fresh) for node in reversed(rows.nodes)
        }  # the first one counts
        for node_id in self._store.known(Node, nodes.keys()):
            del nodes[node_id]
        blobs = {digest: body for rows in fresh for digest, body in rows.blobs.items()}
        records: list[Record] = [record for rows in fresh for record in (rows.call, *rows.attempts, *rows.spans)]
        self._store.add(*records, *nodes.values(), blobs=blobs)
        self._progress.unpriced += sum(rows.call.cost_microusd is None for rows in fresh)


def main() -> None:
    """Do the work that the recorder wrote to the standard input."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    with open(0, "rb", buffering=0, closefd=False) as said:
        work = msgspec.json.decode(said.readline(), type=Work)
    with open(work.progress, "r+b", buffering=0) as file:
        progress = Progress(file)
    compactor = Compactor(
        folder=Path(work.folder),
        open_store=lambda: Store.open(work.store),
        pricer=Pricer(work.prices),
        retention=Retention(Path(work.data)),
        progress=progress,
        bell=Bell(0),
    )
    gc.freeze()  # what is here stays; to look through it again and again took a tenth of the time
    gc.set_threshold(20_000, 10, 10)
    with suppress(Ended):
        compactor.run(work.writer)


if __name__ == "__main__":
    main()
