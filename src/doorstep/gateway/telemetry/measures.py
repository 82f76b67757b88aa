"""The metrics of OpenTelemetry's conventions for generative AI, summed over the calls that are sent out."""

from collections.abc import Mapping
from typing import Any

from doorstep.gateway.histogram import SECONDS, TOKENS, Histogram
from doorstep.gateway.metrics import MOST_SERIES, OTHER
from doorstep.gateway.telemetry import spans
from doorstep.gateway.telemetry.otlp import Measure
from doorstep.gateway.telemetry.spans import Server, Spelling
from doorstep.types import Call

_Label = tuple[tuple[str, Any], ...]
_KINDS = (
    ("gen_ai.client.token.usage", "{token}", "Tokens of a call."),
    ("gen_ai.client.operation.duration", "s", "How long a call took."),
    ("gen_ai.client.operation.time_to_first_chunk", "s", "How long a stream's first piece took."),
)
_USAGE, _DURATION, _FIRST = (name for name, *_ in _KINDS)


class Measures:
    """Sums since the start of this process."""

    def __init__(self, spelling: Spelling, where: Mapping[str, Server]) -> None:
        self._spelling = spelling
        self._where = where
        self._points: dict[str, dict[_Label, Histogram]] = {name: {} for name, *_ in _KINDS}

    def add(self, call: Call) -> None:
        """Count a call."""
        error, server = spans.error_type(call), self._where.get(call.provider)
        label: dict[str, Any] = {
            "gen_ai.operation.name": spans.operation(call),
            **self._spelling.provider(call.provider),
            "gen_ai.request.model": call.requested_model,
            "gen_ai.response.model": call.served_model,
        }
        if server is not None:
            label |= {"server.address": server.address, "server.port": server.port}
        failed = {} if error is None else {"error.type": error}
        self._point(_DURATION, label | failed).add((call.ended_us - call.started_us) / 1_000_000)
        first_s = spans.first_chunk_s(call)
        if first_s is not None:
            self._point(_FIRST, label).add(first_s)
        for kind, tokens in (("input", call.input_tokens), ("output", call.output_tokens)):
            if tokens is not None:
                self._point(_USAGE, label | {"gen_ai.token.type": kind}).add(tokens)

    def all(self) -> list[Measure]:
        """Return what has been counted."""
        return [
            Measure(
                name=name,
                unit=unit,
                meaning=meaning,
                points=[(dict(label), values) for label, values in self._points[name].items()],
            )
            for name, unit, meaning in _KINDS
            if self._points[name]
        ]

    def _point(self, name: str, label: dict[str, Any]) -> Histogram:
        points, key = self._points[name], tuple(label.items())
        if key not in points and len(points) >= MOST_SERIES:  # a client can name any model
            key = tuple((label | {"gen_ai.request.model": OTHER, "gen_ai.response.model": OTHER}).items())
        if key not in points:
            points[key] = Histogram(TOKENS if name == _USAGE else SECONDS)
        return points[key]
