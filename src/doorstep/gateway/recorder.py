"""The recorder: every call into the record, without ever holding up or failing an answer.

``put`` appends a capture to a segment before the answer's last byte goes out. A process of its own, the compactor,
carries the segments into the store, so that its work never takes this process's interpreter lock. When the disk takes
no more, or the store lags too far behind, a call is answered all the same and counted as dropped; its run is marked by
a call without bodies, written as soon as something can be written again.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from doorstep import ids
from doorstep.config import PriceSettings
from doorstep.gateway.capture import DROPPED, Capture
from doorstep.gateway.progress import FINISH, WAKE, Progress, Work, common_file
from doorstep.gateway.segments import ENDING, Writer

log = logging.getLogger(__name__)

FOLDER = "captures"  # of segments, in the data folder
SEGMENT_BYTES = 16_000_000  # after which a new segment begins
SEGMENT_S = 3600.0  # the same: what was said is to stay in a file no longer than this
BACKLOG_BYTES = 1_000_000_000  # of segments that the store has not taken; what comes then is dropped
RUNS_TO_MARK = 10_000  # runs that lost a call and are not marked yet; the others are counted only
MARKS_AT_ONCE = 8
RESTART_S = 1.0
LOOK_S = 0.02


class Recorder:
    """Captures in, rows out. ``put`` is for one thread, the event loop's; ``close`` waits for the store."""

    def __init__(
        self,
        store: str | Path,
        data: Path,
        prices: PriceSettings,
        backlog_bytes: int = BACKLOG_BYTES,
    ) -> None:
        """Record into a store; ``data`` is the data folder, in which the segments are."""
        self.dropped = 0  # calls that were answered but could not be kept
        folder = data / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        name = ids.new_id("seg")
        self._left = list(folder.glob(f"*{ENDING}"))  # by processes that were killed
        self._writer = Writer(folder, name)
        self._turn_at = time.monotonic() + SEGMENT_S
        self._most = backlog_bytes
        self._to_mark: dict[str, Capture] = {}  # by run
        self._shared = common_file()
        self._progress = Progress(self._shared)
        self._work = Work(
            store=str(store),
            data=str(data),
            folder=str(folder),
            writer=name,
            progress=self._shared.fileno(),
            prices=prices,
        )
        self._closing = False
        self._lock = threading.Lock()  # of starting and ending the compactor
        self._compactor = self._start()
        self._attendant = threading.Thread(target=self._attend, name="recorder", daemon=True)
        self._attendant.start()

    @property
    def written(self) -> int:
        """Bytes that were recorded since the start."""
        return self._writer.at

    @property
    def stored(self) -> int:
        """Of them, bytes that the store has taken."""
        return self._progress.at

    @property
    def backlog(self) -> int:
        """Bytes that the store has not taken yet."""
        return self.written - self.stored

    @property
    def refused(self) -> int:
        """Calls that the store would not take."""
        return self._progress.refused

    @property
    def unpriced(self) -> int:
        """Calls of hosted models whose price is not known."""
        return self._progress.unpriced

    @property
    def away_s(self) -> float:
        """Seconds since the store has been taking nothing; 0 when it does."""
        since = self._progress.away_since_us
        return (ids.now_us() - since) / 1_000_000 if since else 0.0

    def await_left(self, seconds: float) -> bool:
        """Wait until the store has what killed processes left behind; False when it takes longer."""
        until = time.monotonic() + seconds
        while any(path.exists() for path in self._left):
            if time.monotonic() > until:
                return False
            time.sleep(LOOK_S)
        return True

    def put(self, capture: Capture) -> None:
        """Keep a call: from here on a kill of this process does not lose it."""
        writer, progress = self._writer, self._progress
        try:
            if writer.at - progress.at >= self._most:
                raise OSError(f"the store is {self.backlog} bytes behind")
            if self._to_mark:
                self._mark()
            writer.append(capture)
            if writer.size >= SEGMENT_BYTES or time.monotonic() > self._turn_at:
                self._turn()
        except OSError as error:
            self._drop(capture, error)
            return
        if progress.asleep:
            progress.asleep = 0
            self._tell(WAKE)

    def close(self) -> None:
        """Wait until the store has everything; what it does not take now stays for the next start."""
        if self._to_mark:
            with suppress(OSError):
                self._mark(RUNS_TO_MARK)
        with self._lock:
            self._closing = True
            self._tell(FINISH)
        self._attendant.join()
        self._writer.close()
        self._shared.close()

    def _turn(self) -> None:
        try:
            self._writer.turn(self._progress.at)
        except OSError as error:
            log.error("a segment grows, since no new one can be begun: %s", error)
        self._turn_at = time.monotonic() + SEGMENT_S

    def _drop(self, capture: Capture, error: OSError) -> None:
        if not self.dropped:
            log.error("calls are answered but not recorded: %s", error)
        self.dropped += 1
        if capture.run_id is not None and len(self._to_mark) < RUNS_TO_MARK:
            empty = msgspec.structs.replace(
                capture, request=b"", response=b"", trace=None, gaps=[*capture.gaps, DROPPED]
            )
            self._to_mark.setdefault(capture.run_id, empty)

    def _mark(self, most: int = MARKS_AT_ONCE) -> None:
        """Note the loss at some of the runs that lost calls."""
        for run_id in list(self._to_mark)[:most]:
            self._writer.append(self._to_mark[run_id])
            del self._to_mark[run_id]

    # The compactor

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "doorstep.gateway.compactor", self._work.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(self._work.progress,),
            bufsize=0,
            process_group=0,  # Ctrl-C is for this process, which then ends the other
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        with suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(self._work) + b"\n")
        return process

    def _attend(self) -> None:
        """Start another compactor when one ends on its own."""
        while True:
            with self._compactor as process:
                code = process.wait()
            if self._closing:
                return
            log.error("the compactor ended with %d; another one goes on", code)
            time.sleep(RESTART_S)
            with self._lock:
                if self._closing:
                    return
                self._compactor = self._start()

    def _tell(self, word: bytes) -> None:
        assert self._compactor.stdin is not None
        with suppress(OSError, ValueError):  # it has ended, or has not read what it was told before
            self._compactor.stdin.write(word)
