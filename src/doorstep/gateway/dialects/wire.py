"""JSON and event streams as all dialects read them: strictly, with errors that name the field.

Numbers without end, NaN, bytes that are not UTF-8, nesting without end and, in ``fields``, a name that comes twice are
``BadInput``, since two readers of such a body may read two things.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec

from doorstep.errors import BadInput

T = TypeVar("T")

_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Read a body with a typed decoder."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(error, "") from None
    except msgspec.DecodeError as error:
        raise BadInput("body", f"not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise BadInput("body", "not valid UTF-8") from None
    except RecursionError:
        raise _too_deep() from None


def fields(body: bytes) -> dict[str, Any]:
    """Return a body's fields; a name that comes twice anywhere is refused."""
    found = decode(_objects, body)
    try:
        json.loads(body, object_pairs_hook=_unique)
    except RecursionError:
        raise _too_deep() from None
    return found


def convert(value: Any, kind: type[T], where: str) -> T:
    """Return a decoded value as a struct; ``where`` is the path to it, such as ``messages[0]``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _invalid(error, where) from None
    except RecursionError:
        raise _too_deep() from None


def encode(value: Any) -> bytes:
    """Return a request that is written as JSON; what was read in it may be too deep to be written."""
    try:
        return msgspec.json.encode(value)
    except RecursionError:
        raise _too_deep() from None


def with_model(body: bytes, model: str) -> bytes:
    """Return a request with another ``model``, every other value byte for byte as it was; no field comes twice."""
    found = decode(_raw, body)
    found["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(found)


async def event_data(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event; pieces may end anywhere, comments and other fields are passed over."""
    held: list[bytes] = []  # the beginning of a line
    data: list[bytes] = []
    async for piece in pieces:
        if b"\n" not in piece:
            held.append(piece)
            continue
        *lines, rest = b"".join((*held, piece)).split(b"\n")
        held = [rest]
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    if (line := b"".join(held).strip()).startswith(b"data:"):  # some end without an empty line
        data.append(line[5:].removeprefix(b" "))
    if data:
        yield b"\n".join(data)


_objects = msgspec.json.Decoder(dict[str, Any])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(twice[:100], "this field comes twice in one object; give it once")
    return found


def _too_deep() -> BadInput:
    return BadInput("body", "nested too deeply; send at most a few hundred levels")


def _invalid(error: msgspec.ValidationError, where: str) -> BadInput:
    """Name the field of a validation error; msgspec ends its message with the path ``- at `$.field` ``."""
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`")
    if not path.endswith("[...]") and ("required field" in text or "unknown field" in text):
        path += f".{text.split('`')[1]}"
    where = (where + path).lstrip(".")
    return BadInput("body" if where.startswith("[") else where or "body", text)


def error_words(body: bytes) -> str:
    """Return what an error's body says, in whichever of the usual shapes; ``""`` for an empty one."""
    try:
        found = msgspec.json.decode(body)
        found = found[0] if isinstance(found, list) else found
        error = found.get("error") or found.get("detail") or found
        said = error["message"] if isinstance(error, dict) else error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, AttributeError, TypeError):
        return body[:500].decode("utf-8", "replace")
    return said if isinstance(said, str) else msgspec.json.encode(said)[:500].decode("utf-8", "replace")
