"""Sends figures of other parts of the server, and spans of what they did, to the collector from the server's process.

The exporter sends what is in the record; this sends what is not. It is tried once each time: the next figures have all
that these had, and spans that the collector did not take are lost, and said.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from doorstep import ids
from doorstep.gateway.metrics import Family
from doorstep.gateway.telemetry import otlp
from doorstep.gateway.telemetry.collector import HEADERS, Collector, Later, read_headers
from doorstep.gateway.telemetry.exporter import resource_of
from doorstep.gateway.telemetry.otlp import Span

log = logging.getLogger(__name__)

EVERY_S = 10.0
MOST_SPANS = 10_000  # that wait to be sent; what comes beyond is left out


class Figures:
    """Sends to one collector: every ``EVERY_S`` while ``run`` runs."""

    def __init__(self, url: str, families: Callable[[], Iterable[Family]]) -> None:
        self._collector = Collector(url, read_headers(os.environ.get(HEADERS, "")))
        self._families = families
        self._resource = resource_of(os.environ)
        self._started_ns = time.time_ns()
        self._spans: list[Span] = []

    def add(self, trace: str, name: str, start_us: int, end_us: int, attributes: Mapping[str, Any]) -> None:
        """Note a span of a trace that is known by any text."""
        if len(self._spans) < MOST_SPANS:
            span = Span(
                trace_id=ids.digest(trace.encode())[:32],
                span_id=os.urandom(8).hex(),
                parent_id=None,
                name=name,
                start_ns=start_us * 1000,
                end_ns=end_us * 1000,
                attributes=attributes,
            )
            self._spans.append(span)

    async def run(self) -> None:
        """Send again and again, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await asyncio.to_thread(self.send)

    def send(self) -> None:
        """Send what there is."""
        spans, self._spans = self._spans, []
        now_ns = time.time_ns()
        figures = otlp.write_figures(self._families(), self._resource, self._started_ns, now_ns)
        try:
            if spans:
                self._collector.send("/v1/traces", otlp.write_spans(spans, self._resource))
            self._collector.send("/v1/metrics", figures)
        except Later as error:
            log.warning("%d spans and the newest figures were not sent: %s", len(spans), error)
