"""The recorder: every call into the record, without ever holding up or failing an answer.

``put`` appends a capture to a segment file before the answer's last byte goes out; a thread of its own carries the
segments into the store and deletes them. What a killed process left is carried over at the next start. When the disk
takes no more, or the store lags too far behind, a call is answered all the same and counted as dropped.
"""

import logging
import threading
import time
from collections import deque
from pathlib import Path

import msgspec

from doorstep import ids
from doorstep.errors import StoreError
from doorstep.gateway import segments
from doorstep.gateway.capture import Capture
from doorstep.gateway.records import Rows, rows_of
from doorstep.gateway.segments import Segment
from doorstep.store import Store
from doorstep.types import Call, Node, Record
from doorstep.value.prices import LOCAL, UNKNOWN, Pricer

log = logging.getLogger(__name__)

BATCH_BYTES = 4_000_000  # of captures in one transaction
SEGMENT_BYTES = 16_000_000  # after which a new segment begins
BACKLOG_BYTES = 1_000_000_000  # of segments that the store has not taken; what comes then is dropped
RETRY_S = 1.0


class Recorder:
    """Captures in, rows out. ``put`` and the counts are for the event loop's thread; ``close`` waits for the store."""

    def __init__(self, store: Store, folder: Path, pricer: Pricer, backlog_bytes: int = BACKLOG_BYTES) -> None:
        self.dropped = 0  # calls that were answered but could not be kept
        self.refused = 0  # calls that the store would not take
        self._store = store
        self._folder = folder
        self._pricer = pricer
        self._most = backlog_bytes
        self._taken = 0  # bytes of all segments ever written, and of what the store has
        self._stored = 0
        self._wake = threading.Event()
        self._closing = False
        folder.mkdir(parents=True, exist_ok=True)
        self._replay()
        self._segments = deque([Segment.create(folder)])
        self._thread = threading.Thread(target=self._drain, name="recorder", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Bytes that the store has not taken yet."""
        return self._taken - self._stored

    def put(self, capture: Capture) -> None:
        """Keep a call: from here on a kill of this process does not lose it."""
        segment = self._segments[-1]
        before = segment.size
        try:
            if self.backlog >= self._most:
                raise OSError(f"the store is {self.backlog} bytes behind")
            segment.append(capture)
        except OSError as error:
            self.dropped += 1
            log.error("call %s was answered but not recorded: %s", capture.call_id, error)
            return
        self._taken += segment.size - before
        if segment.size >= SEGMENT_BYTES:
            self._segments.append(Segment.create(self._folder))
        self._wake.set()

    def close(self) -> None:
        """Carry over what is left and stop; what the store does not take now stays for the next start."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _replay(self) -> None:
        """Carry over what a killed process left; its CPU time is not known, so calls of our engine have no cost."""
        for path, captures in segments.leftovers(self._folder):
            self._commit(captures, replayed=True)
            path.unlink()

    def _drain(self) -> None:
        offset = 0
        while True:
            segment = self._segments[0]
            sealed, closing = len(self._segments) > 1, self._closing  # looked at before reading: then no more comes
            captures, end = segment.read(offset, BATCH_BYTES)
            if captures:
                if not self._carried(captures):
                    return
                self._stored += end - offset
                offset = end
            elif sealed:
                self._segments.popleft().delete()
                offset = 0
            elif closing:
                segment.delete()
                return
            else:
                self._wake.wait()
                self._wake.clear()

    def _carried(self, captures: list[Capture]) -> bool:
        """Put captures into the store, trying again until it takes them; False when closing comes first."""
        while True:
            try:
                self._commit(captures)
            except StoreError as error:
                log.error("calls wait to be recorded: %s", error)
                if self._closing:
                    return False
                time.sleep(RETRY_S)
            else:
                return True

    def _commit(self, captures: list[Capture], *, replayed: bool = False) -> None:
        known = {call.call_id for call in self._store.select_in(Call, "call_id", {c.call_id for c in captures})}
        fresh = [
            self._priced(rows, replayed)
            for capture in captures
            if capture.call_id not in known and (rows := self._rows(capture))
        ]
        if not fresh:
            return
        try:
            self._add(fresh)
        except StoreError:
            self._commit_singly(fresh)

    def _commit_singly(self, fresh: list[Rows]) -> None:
        """Leave out what the store refuses, so that it keeps nothing else out; raise when the fault is the store's."""
        for rows in fresh:
            try:
                self._add([rows])
            except StoreError as refusal:
                proof = str(ids.now_us()).encode()
                self._store.add(blobs={ids.digest(proof): proof})  # raises when the store takes nothing at all
                self.refused += 1
                log.error("call %s was refused: %s", rows.call.call_id, refusal)

    def _add(self, fresh: list[Rows]) -> None:
        nodes = {
            node.node_id: node for rows in reversed(fresh) for node in reversed(rows.nodes)
        }  # the first one counts
        for node in self._store.select_in(Node, "node_id", nodes.keys()):
            del nodes[node.node_id]
        blobs = {digest: body for rows in fresh for digest, body in rows.blobs.items()}
        records: list[Record] = [record for rows in fresh for record in (rows.call, *rows.spans)]
        self._store.add(*records, *nodes.values(), blobs=blobs)

    def _rows(self, capture: Capture) -> Rows | None:
        try:
            return rows_of(capture)
        except Exception:  # one call that is not understood must not keep the others out of the record
            self.refused += 1
            log.exception("call %s was refused", capture.call_id)
            return None

    def _priced(self, rows: Rows, replayed: bool) -> Rows:
        price = UNKNOWN if replayed and rows.call.provider == LOCAL else self._pricer.price(rows.call)
        call = msgspec.structs.replace(
            rows.call, cost_microusd=price.microusd, cost_basis=price.basis, price_version=price.version
        )
        return msgspec.structs.replace(rows, call=call)
