"""OTLP over HTTP: spans and metrics on the wire. Pure; knows no model call.

JSON is written, since every collector takes it; JSON and protobuf are read (``protobuf.py``).
"""

import base64
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from doorstep import __version__
from doorstep.errors import BadInput
from doorstep.gateway.histogram import Histogram
from doorstep.gateway.metrics import Family
from doorstep.gateway.telemetry import protobuf

JSON = "application/json"
PROTOBUF = "application/x-protobuf"
CLIENT, INTERNAL = 3, 1  # kinds of span
CUMULATIVE = 2
_FAILED = 2  # status of a span
_HEX = frozenset(string.hexdigits)

Attributes = Mapping[str, Any]


class Event(msgspec.Struct, frozen=True):
    """Something that happened within a span."""

    name: str
    attributes: Attributes
    at_ns: int = 0  # 0: it does not say


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A span. Ids are lower-case hexadecimal; ``error`` is None unless it failed, empty where it did not say why."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: int = INTERNAL
    start_ns: int
    end_ns: int
    attributes: Attributes = {}
    events: Sequence[Event] = ()
    error: str | None = None
    resource: Attributes = {}


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram by attributes, since ``start_ns``."""

    name: str
    unit: str
    meaning: str
    points: Sequence[tuple[Attributes, Histogram]]


# Writing


def write_spans(spans: Sequence[Span], resource: Attributes) -> bytes:
    """Return an export request; what the spans say of their resource is left out."""
    inside = {"scope": _SCOPE, "spans": [_span(span) for span in spans]}
    return msgspec.json.encode(
        {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [inside]}]}
    )


def write_measures(measures: Sequence[Measure], resource: Attributes, start_ns: int, now_ns: int) -> bytes:
    """Return an export request of sums since ``start_ns``."""
    times = {"startTimeUnixNano": str(start_ns), "timeUnixNano": str(now_ns)}
    metrics = [
        {
            "name": measure.name,
            "unit": measure.unit,
            "description": measure.meaning,
            "histogram": {
                "aggregationTemporality": CUMULATIVE,
                "dataPoints": [_point(attributes, values) | times for attributes, values in measure.points],
            },
        }
        for measure in measures
    ]
    inside = {"scope": _SCOPE, "metrics": metrics}
    return msgspec.json.encode(
        {"resourceMetrics": [{"resource": {"attributes": _attributes(resource)}, "scopeMetrics": [inside]}]}
    )


def write_figures(families: Iterable[Family], resource: Attributes, start_ns: int, now_ns: int) -> bytes:
    """Return an export request of counters, which are sums since ``start_ns``, and of gauges."""
    times = {"startTimeUnixNano": str(start_ns), "timeUnixNano": str(now_ns)}
    inside = {"scope": _SCOPE, "metrics": [_figure(family, times) for family in families]}
    return msgspec.json.encode(
        {"resourceMetrics": [{"resource": {"attributes": _attributes(resource)}, "scopeMetrics": [inside]}]}
    )


def _figure(family: Family, times: dict[str, str]) -> dict[str, Any]:
    name, kind, meaning, samples = family
    points = [{"attributes": _attributes(dict(labels)), "asDouble": value} | times for labels, value in samples]
    data: dict[str, Any] = {"dataPoints": points}
    if kind == "counter":
        data |= {"aggregationTemporality": CUMULATIVE, "isMonotonic": True}
    return {"name": name, "description": meaning, "sum" if kind == "counter" else "gauge": data}


def _span(span: Span) -> dict[str, Any]:
    written = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
    }
    if span.parent_id is not None:
        written["parentSpanId"] = span.parent_id
    if span.error is not None:
        written["status"] = {"code": _FAILED, "message": span.error}
    return written


def _point(attributes: Attributes, values: Histogram) -> dict[str, Any]:
    return {
        "attributes": _attributes(attributes),
        "count": str(values.count),
        "sum": values.sum,
        "bucketCounts": [str(count) for count in values.counts],
        "explicitBounds": list(values.bounds),
    }


def _attributes(values: Attributes) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value is not None]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_value(one) for one in value]}}
    return {"stringValue": str(value)}


_SCOPE = {"name": "doorstep", "version": __version__}

# Reading

_Number = int | str  # 64-bit numbers are texts in JSON


class _KeyValue(msgspec.Struct):
    key: str = ""
    value: Any = None


class _Resource(msgspec.Struct):
    attributes: list[_KeyValue] = []


class _Event(msgspec.Struct, rename="camel"):
    time_unix_nano: _Number = 0
    name: str = ""
    attributes: list[_KeyValue] = []


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    name: str = ""
    start_time_unix_nano: _Number = 0
    end_time_unix_nano: _Number = 0
    attributes: list[_KeyValue] = []
    events: list[_Event] = []
    status: _Status = msgspec.field(default_factory=_Status)


class _ScopeSpans(msgspec.Struct):
    spans: list[_Span] = []


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource = msgspec.field(default_factory=_Resource)
    scope_spans: list[_ScopeSpans] = []


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] = []


class Read(msgspec.Struct, frozen=True):
    """The spans of a request, and why others of it are none."""

    spans: list[Span]
    rejected: list[str]


def read_spans(body: bytes, media_type: str) -> Read:
    """Read an export request in either spelling. ``BadInput`` when it is none at all."""
    try:
        if media_type == PROTOBUF:
            request = msgspec.convert(protobuf.read_request(body), _Request)
        else:
            request = msgspec.json.decode(body, type=_Request)
        found = [
            _read_span(span, resource)
            for one in request.resource_spans
            for resource in (_read_attributes(one.resource.attributes),)
            for scope in one.scope_spans
            for span in scope.spans
        ]
    except (msgspec.DecodeError, protobuf.Malformed, UnicodeDecodeError, RecursionError) as error:
        raise BadInput("body", f"it is no OTLP export request ({error})") from None
    return Read([one for one in found if isinstance(one, Span)], [one for one in found if isinstance(one, str)])


def _read_span(span: _Span, resource: Attributes) -> Span | str:
    """Return a span, or what is wrong with it."""
    trace_id, span_id, parent_id = (one.lower() for one in (span.trace_id, span.span_id, span.parent_span_id))
    if not (_is_id(trace_id, 32) and _is_id(span_id, 16) and (not parent_id or _is_id(parent_id, 16))):
        return f"span {span.name[:60]!r} has no valid ids"
    try:
        start_ns, end_ns = int(span.start_time_unix_nano), int(span.end_time_unix_nano)
        events = [Event(one.name, _read_attributes(one.attributes), int(one.time_unix_nano)) for one in span.events]
    except ValueError:
        start_ns = end_ns = -1
    if not 0 < start_ns <= end_ns < 2**63:
        return f"span {span_id} has no valid times"
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id or None,
        name=_storable(span.name),
        start_ns=start_ns,
        end_ns=end_ns,
        attributes=_read_attributes(span.attributes),
        events=events,
        error=_storable(span.status.message) if span.status.code == _FAILED else None,
        resource=resource,
    )


def _is_id(text: str, length: int) -> bool:
    return len(text) == length and _HEX.issuperset(text) and text.strip("0") != ""


def _read_attributes(pairs: Sequence[_KeyValue]) -> dict[str, Any]:
    return {pair.key: _read_value(pair.value) for pair in pairs}


def _read_value(value: Any) -> Any:
    """Return an attribute's value as plain JSON; None for one that is no value."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    ((kind, inner),) = value.items()
    match kind, inner:
        case "stringValue", str():
            return _storable(inner)
        case "boolValue", bool():
            return inner
        case "intValue", int() | str():
            return int(inner) if str(inner).lstrip("-").isdecimal() else None
        case "doubleValue", int() | float():
            return float(inner)
        case "bytesValue", str() | bytes():
            return inner if isinstance(inner, str) else base64.b64encode(inner).decode()
        case "arrayValue", dict():
            return [_read_value(one) for one in _members(inner)]
        case "kvlistValue", dict():
            return {
                str(one.get("key")): _read_value(one.get("value")) for one in _members(inner) if isinstance(one, dict)
            }
    return None


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")  # PostgreSQL takes no NUL


def _members(value: Mapping[str, Any]) -> Iterator[Any]:
    found = value.get("values")
    yield from found if isinstance(found, list) else ()


# Answers


def answer(media_type: str, rejected: Sequence[str]) -> bytes:
    """Return the answer to an export request of which some spans were rejected, or none."""
    if media_type == PROTOBUF:
        return protobuf.write_answer(len(rejected), rejected[0] if rejected else "")
    if not rejected:
        return b"{}"
    return msgspec.json.encode({"partialSuccess": {"rejectedSpans": str(len(rejected)), "errorMessage": rejected[0]}})


def refusal(media_type: str, message: str) -> bytes:
    """Return the answer to a request that was refused as a whole: a ``google.rpc.Status``."""
    return protobuf.write_status(message) if media_type == PROTOBUF else msgspec.json.encode({"message": message})
