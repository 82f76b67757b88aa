"""Messages in spans, in each of the ways in which they are put there, as messages of OpenAI's chat format.

Newest first: one attribute with the messages as JSON, their parts typed; one attribute per field of each message, of
OpenInference and of OpenLLMetry; one event per message. What is none of these is passed over: anybody may send a span.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from doorstep.gateway.telemetry.otlp import Attributes, Span

_ROLES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}


def asked(span: Span, said: Attributes) -> list[dict[str, Any]]:
    """Return the messages that were sent."""
    system = _list(parsed(said.get("gen_ai.system_instructions")))
    found = [_from_parts({"role": "system", "parts": system})] if system else []
    structured = parsed(first(said, ("gen_ai.input.messages", "gen_ai.prompt")))
    if isinstance(structured, list):
        return found + [_from_parts(_dict(message)) for message in structured]
    flat = nested(said, "llm.input_messages") or nested(said, "gen_ai.prompt")
    if flat:
        return found + [_from_flat(message) for message in flat]
    return found + [_from_event(_ROLES[one.name], one.attributes) for one in span.events if one.name in _ROLES]


def answers(span: Span, said: Attributes) -> Iterator[dict[str, Any]]:
    """Yield the answers, some with their ``finish_reason``."""
    structured = parsed(first(said, ("gen_ai.output.messages", "gen_ai.completion")))
    flat = nested(said, "llm.output_messages") or nested(said, "gen_ai.completion")
    if isinstance(structured, list):
        yield from (_from_parts(_dict(message)) | _reason(_dict(message)) for message in structured)
    elif flat:
        yield from (_from_flat(message) | _reason(message) for message in flat)
    else:
        for event in span.events:
            if event.name == "gen_ai.choice":
                message = _dict(parsed(event.attributes.get("message"))) or event.attributes
                yield _from_event("assistant", message) | _reason(event.attributes)


def embedded(span: Span, said: Attributes) -> list[str]:
    """Return the texts that were embedded."""
    found = [_dict(one.get("embedding")).get("text") for one in nested(said, "embedding.embeddings")]
    found = found or [message.get("content") for message in asked(span, said)] or [said.get("input.value")]
    return [text for text in found if isinstance(text, str)]


def tools(said: Attributes) -> list[dict[str, Any]]:
    """Return the tools that the model could call."""
    flat = [_dict(parsed(_dict(one.get("tool")).get("json_schema"))) for one in nested(said, "llm.tools")]
    found = flat or [_dict(one) for one in _list(parsed(said.get("gen_ai.tool.definitions")))]
    return [tool if "function" in tool else _tool(tool) for tool in found if tool]


def _tool(said: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: said[name] for name in ("name", "description", "parameters") if name in said}
    return {"type": "function", "function": function}


def first(said: Attributes, names: Sequence[str]) -> Any:
    """Return what is said under the first of some names that is there."""
    return next((said[name] for name in names if said.get(name) is not None), None)


def text_of(value: Any) -> str | None:
    """Return a value if it is a text with something in it."""
    return value if isinstance(value, str) and value else None


def parsed(value: Any) -> Any:
    """Return what a text of JSON says; any other text, and any other value, as it is."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return value


def nested(said: Attributes, prefix: str) -> list[dict[str, Any]]:
    """Return the objects that were flattened to ``PREFIX.0.field.1.field``."""
    root: dict[str, Any] = {}
    for name, value in said.items():
        if name.startswith(f"{prefix}."):
            *path, last = name[len(prefix) + 1 :].split(".")
            at: Any = root
            for step in path:
                at = at.setdefault(step, {}) if isinstance(at, dict) else None
            if isinstance(at, dict):
                at[last] = value
    return [one for one in _list(_listed(root, 0)) if isinstance(one, dict)]


def _listed(value: Any, depth: int) -> Any:
    """Return nested objects whose names are numbers as lists."""
    if not isinstance(value, dict) or depth > 20:
        return value
    if value and all(name.isascii() and name.isdecimal() and len(name) < 6 for name in value):
        return [_listed(value[name], depth + 1) for name in sorted(value, key=int)]
    return {name: _listed(inner, depth + 1) for name, inner in value.items()}


def _from_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message that consists of parts; one of OpenAI's as it is."""
    parts = message.get("parts")
    if not isinstance(parts, list):
        return dict(message)
    texts, calls, answers_to = [], [], None
    for part in parts:
        match part:
            case {"type": "text", "content": str() as text}:
                texts.append(text)
            case {"type": "tool_call"}:
                calls.append(_tool_call(part.get("id"), part.get("name"), part.get("arguments")))
            case {"type": "tool_call_response"}:
                answers_to = part.get("id")
                texts.append(_as_text(part.get("response", part.get("result"))))
    return _message(message.get("role"), "\n".join(texts) or None, calls, answers_to)


def _from_flat(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message that was one attribute per field."""
    said = _dict(message.get("message")) or message
    contents = [_dict(_dict(one).get("message_content")).get("text") for one in _list(said.get("contents"))]
    texts = [text for text in contents if isinstance(text, str)]
    calls = []
    for call in _list(said.get("tool_calls")):
        one = _dict(_dict(call).get("tool_call")) or _dict(call)
        function = _dict(one.get("function")) or one
        calls.append(_tool_call(one.get("id"), function.get("name"), function.get("arguments")))
    return _message(said.get("role"), "\n".join(texts) or said.get("content"), calls, said.get("tool_call_id"))


def _from_event(role: str, event: Attributes) -> dict[str, Any]:
    calls = [call for call in _list(parsed(event.get("tool_calls"))) if isinstance(call, dict)]
    return _message(text_of(event.get("role")) or role, event.get("content"), calls, event.get("id"))


def _message(role: Any, content: Any, calls: list[dict[str, Any]], answers_to: Any) -> dict[str, Any]:
    message: dict[str, Any] = {"role": text_of(role) or "user", "content": content}
    if calls:
        message["tool_calls"] = calls
    if answers_to is not None and role == "tool":
        message["tool_call_id"] = answers_to
    return message


def _reason(message: Mapping[str, Any]) -> dict[str, Any]:
    reason = text_of(message.get("finish_reason"))
    return {"finish_reason": reason} if reason else {}


def _tool_call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    function = {"name": str(name), "arguments": _as_text(arguments)}
    return {"id": str(call_id or ""), "type": "function", "function": function}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
