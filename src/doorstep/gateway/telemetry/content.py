"""What was asked and answered, as attributes of a span, with the secrets and personal data that are found taken out."""

from typing import Any

import msgspec

from doorstep.errors import DoorstepError
from doorstep.gateway import chat
from doorstep.gateway.dialects.base import ChatDialect, Dialect, Reading
from doorstep.gateway.dialects.table import CHATS, DIALECTS
from doorstep.store import Store
from doorstep.store.redaction import redact_value
from doorstep.types import Call


def of_call(store: Store, call: Call) -> dict[str, str]:
    """Return the messages of a chat; nothing for what is none, was deleted, or is not understood."""
    dialect = DIALECTS.get(call.dialect)
    if dialect is None or call.dialect not in CHATS:
        return {}
    found = {
        "gen_ai.input.messages": _asked(dialect, _body(store, call.request_digest)),
        "gen_ai.output.messages": _answered(dialect, _body(store, call.response_digest)),
    }
    return {name: msgspec.json.encode(redact_value(value)[0]).decode() for name, value in found.items() if value}


def _body(store: Store, digest: str | None) -> bytes | None:
    return store.blob(digest) if digest else None


def _asked(dialect: Any, body: bytes | None) -> list[dict[str, Any]]:
    assert isinstance(dialect, ChatDialect)
    if body is None:
        return []
    try:
        request = dialect.read(body)
    except DoorstepError:
        return []
    return [{"role": message.role, "parts": [_part(block) for block in message.blocks]} for message in request.messages]


def _answered(dialect: Dialect, body: bytes | None) -> list[dict[str, Any]]:
    reading = Reading() if body is None else dialect.understand(body)
    texts = [[{"type": "text", "content": text}] for text in reading.texts]
    whole = [[{"type": dialect.NAME, "content": message}] for message in reading.messages]  # more than text
    reason = {"finish_reason": reading.finish_reason} if reading.finish_reason else {}
    return [{"role": "assistant", "parts": parts, **reason} for parts in whole or texts]


def _part(block: chat.Block) -> dict[str, Any]:
    match block:
        case chat.Text() | chat.Refusal():
            return {"type": "text", "content": block.text}
        case chat.Thinking():
            return {"type": "reasoning", "content": block.text}
        case chat.ToolCall():
            return {"type": "tool_call", "id": block.id, "name": block.name, "arguments": block.arguments}
        case chat.ToolResult():
            return {
                "type": "tool_call_response",
                "id": block.call_id,
                "response": [_part(inner) for inner in block.content],
            }
        case _:  # pictures, sound and files stay in the record
            return {"type": type(block).__name__.lower()}
