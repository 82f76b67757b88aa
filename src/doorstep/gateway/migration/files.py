"""Export files as lines of plain values: JSONL, JSON (a list, or pages with ``data``), CSV."""

import csv
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from doorstep.errors import BadInput, UsageError

Progress = Callable[[int, int], None]  # bytes read, of how many


class Line(NamedTuple):
    """One line of a file, or what is wrong with it. ``where`` is ``FILE:NUMBER``."""

    where: str
    value: dict[str, Any]
    error: str | None = None


def read_files(files: Sequence[Path], progress: Progress) -> Iterator[Line]:
    """Yield the lines of all files; ``UsageError`` for a file that cannot be read at all."""
    total, done = sum(map(_size, files)), 0
    for file in files:
        for line, at in _lines(file):
            progress(done + at, total)
            yield line
        done += _size(file)
    progress(total, total)


def plain(text: Any) -> Any:
    """Return what a cell or field says: the value that its JSON is, or the text itself."""
    if isinstance(text, str) and text[:1] in ("{", "[", '"'):
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return text
    return text


def mapping(value: Any) -> dict[str, Any]:
    """Return a value that is to be an object; what is none has nothing in it."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """Return a value that is to be a list; what is none has nothing in it."""
    return value if isinstance(value, list) else []


def _lines(file: Path) -> Iterator[tuple[Line, int]]:
    """Yield the lines of a file, and how many bytes were read for them."""
    match file.suffix.lower():
        case ".csv":
            yield from _csv(file)
        case ".json":
            yield from _json(file)
        case ".jsonl" | ".ndjson" | "":
            yield from _jsonl(file)
        case ending:
            raise UsageError(f"{file}: files that end in {ending} cannot be read; export as .jsonl, .json or .csv")


def _jsonl(file: Path) -> Iterator[tuple[Line, int]]:
    at = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            at += len(line)
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
            if line.strip():
                yield _line(f"{file.name}:{number}", line), at


def _line(where: str, line: bytes) -> Line:
    try:
        return _object(where, msgspec.json.decode(line))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Line(where, {}, f"not JSON in UTF-8: {error}")


def _json(file: Path) -> Iterator[tuple[Line, int]]:
    try:
        found = msgspec.json.decode(file.read_bytes().removeprefix(BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(
            str(file), f"not JSON in UTF-8: {error}; a file with an object on each line ends in .jsonl"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        found = found["data"]
    values = found if isinstance(found, list) else [found]
    for number, value in enumerate(values, start=1):
        yield _object(f"{file.name}:{number}", value), _size(file) * number // len(values)


def _csv(file: Path) -> Iterator[tuple[Line, int]]:
    csv.field_size_limit(sys.maxsize)  # a cell may hold a whole conversation
    with file.open(encoding="utf-8-sig", newline="") as text:
        try:
            for row in (reader := csv.DictReader(text)):
                where = f"{file.name}:{reader.line_num}"
                if None in row or None in row.values():
                    yield Line(where, {}, "it has not as many cells as the first line"), 0
                else:
                    yield Line(where, {name: plain(cell) for name, cell in row.items() if cell}), 0
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadInput(str(file), f"no CSV in UTF-8: {error}") from None


def _object(where: str, value: Any) -> Line:
    return Line(where, value) if isinstance(value, dict) else Line(where, {}, "not a JSON object")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
