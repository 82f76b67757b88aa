"""The exporter: a process of its own that sends what comes into the record to a collector. ``export`` starts it.

Everything is sent at least once, in the order in which it came. While the collector is away it waits; how far it came
is kept, so that the next one goes on there. Its metrics are sums since it began, so that sending them again is no harm.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from doorstep import __version__, ids
from doorstep.errors import StoreError
from doorstep.gateway.compactor import NICENESS, Bell, Ended
from doorstep.gateway.telemetry import content, cursor, otlp, spans
from doorstep.gateway.telemetry.collector import HEADERS, Collector, Later, read_headers
from doorstep.gateway.telemetry.measures import Measures
from doorstep.gateway.telemetry.otlp import Span
from doorstep.gateway.telemetry.reading import FROM_SPAN
from doorstep.gateway.telemetry.spans import Server, Spelling
from doorstep.store import Store, arrivals
from doorstep.types import Call, Run

log = logging.getLogger(__name__)

PAGE = 500  # spans sent at once, about
LOOK_S = 1.0
MOST_WAIT_S = 60.0


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What an exporter is to do, the first line of its standard input: a database's address may hold a password."""

    store: str
    data: str  # folder
    otlp: str
    content: bool
    servers: dict[str, Server]


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """How calls are written down."""

    spelling: Spelling
    servers: dict[str, Server]
    content: bool


class Exporter:
    """Sends the record of one store to one collector; ``run`` returns when it is told to finish."""

    def __init__(
        self,
        store: Store,
        file: Path,
        collector: Collector,
        bell: Bell,
        write: Write,
        resource: Mapping[str, Any],
    ) -> None:
        """``file`` holds the cursor; ``Ended`` when it does not."""
        known = cursor.load(file)
        if known is None:
            raise Ended(f"{file} is gone")
        self._cursor = known
        self._store = store
        self._file = file
        self._collector = collector
        self._bell = bell
        self._write = write
        self._measures = Measures(write.spelling, write.servers)
        self._resource = resource
        self._started_ns = time.time_ns()
        self._away = False

    def run(self) -> None:
        """Send until finishing, and then what is left, if the collector takes it at once."""
        while True:
            self._bell.wait(0)
            try:
                sent = self._step()
            except StoreError as error:
                log.warning("telemetry waits for the store: %s", error)
                sent = False
            if not sent:
                if self._bell.finishing:
                    return
                self._bell.wait(LOOK_S)

    def _step(self) -> bool:
        """Send the next page; False when there is none."""
        known = self._cursor
        calls, calls_upto = arrivals.page(self._store, Call, known.calls, PAGE)
        runs, runs_upto = arrivals.page(self._store, Run, known.runs, PAGE)
        if not calls and not runs:
            return False
        own = [call for call in calls if FROM_SPAN not in call.gaps]  # others were somebody's spans already
        rows: list[Call | Run] = [*own, *(run for run in runs if FROM_SPAN not in run.gaps)]
        found = [span for row in rows if (span := self._span(row))]
        for call in own:
            self._measures.add(call)
        self._send(found)
        self._cursor = msgspec.structs.replace(known, calls=calls_upto, runs=runs_upto)
        try:
            cursor.save(self._file, self._cursor)
        except OSError as error:
            log.error("what was sent will be sent again after the next start: %s", error)
        return True

    def _span(self, row: Call | Run) -> Span | None:
        """Return the span of a row; one that cannot be written must not stop the others."""
        write = self._write
        try:
            if isinstance(row, Run):
                return spans.of_run(row)
            said = content.of_call(self._store, row) if write.content else {}
            return spans.of_call(row, write.spelling, write.servers, said)
        except StoreError:
            raise
        except Exception:
            log.exception("telemetry leaves a row out")
            return None

    def _send(self, found: list[Span]) -> None:
        if not found:
            return
        self._patiently("/v1/traces", otlp.write_spans(found, self._resource))
        measures = self._measures.all()
        if measures:
            body = otlp.write_measures(measures, self._resource, self._started_ns, time.time_ns())
            self._patiently("/v1/metrics", body)

    def _patiently(self, path: str, body: bytes) -> None:
        """Send, trying again until it is taken; ``Ended`` when finishing comes first."""
        wait_s = LOOK_S
        while True:
            try:
                self._collector.send(path, body)
            except Later as error:
                if self._bell.finishing:
                    raise Ended from error
                if not self._away:
                    log.error("telemetry waits: %s", error)
                self._away = True
                self._bell.wait(max(wait_s, min(error.after_s, MOST_WAIT_S)))
                wait_s = min(2 * wait_s, MOST_WAIT_S)
            else:
                self._away = False
                return


def resource_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return who sends, as OpenTelemetry's variables say it."""
    said = read_headers(environment.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    name = environment.get("OTEL_SERVICE_NAME") or said.get("service.name") or "doorstep"
    instance = {"service.instance.id": ids.new_id("exporter")}  # its sums are not another's
    return instance | said | {"service.name": name, "service.version": __version__}


def main() -> None:
    """Do the work that the server wrote to the standard input."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    with open(0, "rb", buffering=0, closefd=False) as said:
        work = msgspec.json.decode(said.readline(), type=Work)
    write = Write(spelling=Spelling.asked_by(os.environ), servers=work.servers, content=work.content)
    collector = Collector(work.otlp, read_headers(os.environ.get(HEADERS, "")))
    with suppress(Ended), Store.open(work.store) as store:
        Exporter(store, Path(work.data) / cursor.FILE, collector, Bell(0), write, resource_of(os.environ)).run()


if __name__ == "__main__":
    main()
