"""Values that fit a JSON Schema, made by rule, for the fake provider's tool calls and JSON answers."""

from collections.abc import Mapping
from typing import Any

_MOST_DEPTH = 20  # of a schema that refers to itself
_FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00",
    "email": "name@example.com",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example(schema: Mapping[str, Any]) -> Any:
    """Return a value that fits a schema: as small as it may be, with all of its properties."""
    return _value(schema, schema, 0)


def _value(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > _MOST_DEPTH:
        return None
    if "$ref" in schema:
        return _value(_referred(root, schema["$ref"]), root, depth + 1)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("anyOf", "oneOf"):
        if schema.get(name):
            return _value(schema[name][0], root, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            merged |= part
        return _value(merged, root, depth + 1)
    return _of_type(schema, root, depth)


def _of_type(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {name: _value(part, root, depth + 1) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [_value(schema.get("items", {}), root, depth + 1) for _ in range(max(1, schema.get("minItems", 1)))]
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _FORMATS.get(schema.get("format", ""), "text".ljust(schema.get("minLength", 0), "."))


def _referred(root: Mapping[str, Any], reference: str) -> Any:
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(part) if part and isinstance(found, Mapping) else found
    return found
