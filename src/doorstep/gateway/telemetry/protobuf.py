"""The part of protobuf that OTLP's traces need: read into the shape that its JSON has. Most SDKs send nothing else.

A message is described by its fields' numbers; what is not described is passed over.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

DEEPEST = 50  # values in values


class Malformed(ValueError):
    """The bytes are no message."""


class Field(NamedTuple):
    """A field: its name in JSON, how its value is read, and whether there may be more than one."""

    name: str
    read: Callable[[Any, int], Any]
    many: bool = False


Message = dict[int, Field]


def read_request(body: bytes) -> dict[str, Any]:
    """Read an ``ExportTraceServiceRequest``."""
    return _read(memoryview(body), REQUEST, 0)


def write_answer(rejected: int, why: str) -> bytes:
    """Write an ``ExportTraceServiceResponse``."""
    if not rejected:
        return b""
    return _delimited(1, b"\x08" + _varint(rejected) + _delimited(2, why.encode("utf-8", "replace")))


def write_status(message: str) -> bytes:
    """Write a ``google.rpc.Status``."""
    return _delimited(2, message.encode("utf-8", "replace"))


# Reading

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_fixed64, _fixed32 = struct.Struct("<Q"), struct.Struct("<I")


def _read(data: memoryview, message: Message, depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        raise Malformed("it is nested too deeply")
    found: dict[str, Any] = {}
    for number, value in _fields(data):
        field = message.get(number)
        if field is None:
            continue
        read = field.read(value, depth + 1)
        if field.many:
            found.setdefault(field.name, []).append(read)
        else:
            found[field.name] = read
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind == _DELIMITED:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise Malformed(f"a field of kind {kind} is not known")
        if at + size > len(data):
            raise Malformed("it ends in the middle")
        yield number, data[at : at + size]
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), at
        shift += 7
    raise Malformed("it ends in the middle")


def _bytes(value: Any) -> memoryview:
    if not isinstance(value, memoryview):
        raise Malformed("a number stands where bytes should")
    return value


def _text(value: Any, _depth: int) -> str:
    return str(_bytes(value), "utf-8")


def _hex(value: Any, _depth: int) -> str:
    return _bytes(value).hex()


def _raw(value: Any, _depth: int) -> bytes:
    return bytes(_bytes(value))


def _number(value: Any, _depth: int) -> int:
    if isinstance(value, memoryview):
        return int((_fixed64 if len(value) == 8 else _fixed32).unpack(_sized(value))[0])
    return int(value)


def _signed(value: Any, depth: int) -> int:
    number = _number(value, depth)
    return number - 2**64 if number >= 2**63 else number


def _truth(value: Any, depth: int) -> bool:
    return bool(_number(value, depth))


def _double(value: Any, _depth: int) -> float:
    return float(struct.unpack("<d", _sized(_bytes(value), 8))[0])


def _sized(value: memoryview, *sizes: int) -> memoryview:
    if len(value) not in (sizes or (4, 8)):
        raise Malformed("a number has another size")
    return value


def _message(message: Message) -> Callable[[Any, int], dict[str, Any]]:
    return lambda value, depth: _read(_bytes(value), message, depth)


VALUE: Message = {
    1: Field("stringValue", _text),
    2: Field("boolValue", _truth),
    3: Field("intValue", _signed),
    4: Field("doubleValue", _double),
    7: Field("bytesValue", _raw),
}
KEY_VALUE: Message = {1: Field("key", _text), 2: Field("value", _message(VALUE))}
VALUE[5] = Field("arrayValue", _message({1: Field("values", _message(VALUE), many=True)}))
VALUE[6] = Field("kvlistValue", _message({1: Field("values", _message(KEY_VALUE), many=True)}))
ATTRIBUTES = Field("attributes", _message(KEY_VALUE), many=True)
EVENT: Message = {1: Field("timeUnixNano", _number), 2: Field("name", _text), 3: ATTRIBUTES}
STATUS: Message = {2: Field("message", _text), 3: Field("code", _number)}
SPAN: Message = {
    1: Field("traceId", _hex),
    2: Field("spanId", _hex),
    4: Field("parentSpanId", _hex),
    5: Field("name", _text),
    7: Field("startTimeUnixNano", _number),
    8: Field("endTimeUnixNano", _number),
    9: ATTRIBUTES,
    11: Field("events", _message(EVENT), many=True),
    15: Field("status", _message(STATUS)),
}
SCOPE_SPANS: Message = {2: Field("spans", _message(SPAN), many=True)}
RESOURCE_SPANS: Message = {
    1: Field("resource", _message({1: ATTRIBUTES})),
    2: Field("scopeSpans", _message(SCOPE_SPANS), many=True),
}
REQUEST: Message = {1: Field("resourceSpans", _message(RESOURCE_SPANS), many=True)}

# Writing


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def _delimited(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | _DELIMITED]) + _varint(len(data)) + data
