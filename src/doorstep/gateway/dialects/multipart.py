"""A small strict reader of ``multipart/form-data`` bodies, which finds each part and copies none of them.

The boundary is read from the body itself: its first line. So a body is understood without its headers, and what comes
before the first part is refused, although RFC 2046 allows it: no client sends any.
"""

import re
from collections.abc import Collection

import msgspec

from doorstep.errors import BadInput

MOST_PARTS = 1000  # pictures, fields and their like; more is an attack on the parser
_BOUNDARY = re.compile(rb"--([0-9A-Za-z'()+_,./:=? -]{1,70})\r\n")
_DISPOSITION = re.compile(rb"(?:^|\r\n)content-disposition:[ \t]*form-data([^\r\n]*)", re.IGNORECASE)
_TYPE = re.compile(rb"(?:^|\r\n)content-type:[ \t]*([^\r\n]*)", re.IGNORECASE)
_PARAMETER = re.compile(rb';[ \t]*(name|filename)=(?:"((?:[^"\\]|\\.)*)"|([^;" \t]+))', re.IGNORECASE)


class Part(msgspec.Struct, frozen=True):
    """One part: its content is ``body[start:end]``. A file has a file name, a plain field has none."""

    name: str
    filename: str | None
    media_type: str | None
    start: int
    end: int


def is_form(body: bytes) -> bool:
    """Tell whether a body is a form; what is not begins like JSON."""
    return body.startswith(b"--")


def parts(body: bytes) -> list[Part]:
    """Return the parts in their order."""
    delimiter = b"\r\n--" + _boundary(body)
    found: list[Part] = []
    at = len(delimiter)  # the first delimiter has no line break before it but one after it
    while True:
        if len(found) == MOST_PARTS:
            raise BadInput("body", f"the form has more than {MOST_PARTS} parts")
        headers_end = body.find(b"\r\n\r\n", at - 2)  # from the line break, so that a part without headers is seen
        end = body.find(delimiter, headers_end + 4)
        if headers_end < 0 or end < 0:
            raise BadInput("body", "the form breaks off: its last boundary is missing")
        found.append(_part(body[at:headers_end], delimiter, headers_end + 4, end))
        after = end + len(delimiter)
        if body.startswith(b"--", after):
            return found
        if not body.startswith(b"\r\n", after):
            raise BadInput("body", "the form is damaged: after a boundary there is no line break")
        at = after + 2


def texts(body: bytes, names: Collection[str]) -> dict[str, str]:
    """Return the plain fields of these names. One that is there twice is refused: readers differ on which counts."""
    found: dict[str, str] = {}
    for part in parts(body):
        if part.name in names:
            if part.name in found:
                raise BadInput(part.name, "given twice")
            if part.filename is not None:
                raise BadInput(part.name, "is a file; send it as a plain field")
            found[part.name] = _text(body, part)
    return found


def with_text(body: bytes, name: str, value: str) -> bytes:
    """Return the form with another value in one plain field, every other byte as it was."""
    part = next(part for part in parts(body) if part.name == name)
    return b"".join((body[: part.start], value.encode(), body[part.end :]))


def _boundary(body: bytes) -> bytes:
    match = _BOUNDARY.match(body)
    if match is None:
        raise BadInput("body", "neither JSON nor a form: a form begins with two hyphens, its boundary and a line break")
    return match[1]


def _part(head: bytes, delimiter: bytes, start: int, end: int) -> Part:
    dispositions = _DISPOSITION.findall(head)
    parameters = _parameters(dispositions[0]) if len(dispositions) == 1 and delimiter not in head else {}
    if "name" not in parameters:
        raise BadInput("body", "a part of the form has no name, or not exactly one Content-Disposition with it")
    kind = _TYPE.search(head)
    media_type = None if kind is None else kind[1].decode("latin-1").strip()
    return Part(parameters["name"], parameters.get("filename"), media_type, start, end)


def _parameters(line: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, quoted, plain in _PARAMETER.findall(line):
        name = key.decode().lower()
        if name in found:
            raise BadInput("body", f"a part of the form has two values of '{name}' in its Content-Disposition")
        found[name] = re.sub(rb"\\(.)", rb"\1", quoted or plain).decode("utf-8", "replace")
    return found


def _text(body: bytes, part: Part) -> str:
    try:
        return body[part.start : part.end].decode()
    except UnicodeDecodeError:
        raise BadInput(part.name, "not valid UTF-8") from None
