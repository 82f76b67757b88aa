"""OpenAI's files of examples as records for ``doorstep init``: fine-tuning chats, preferences, stored completions.

A record has what was asked as its input and the answer as what was expected. A system prompt that is the same in all
examples is an instruction, which belongs into the workflow: it is given apart.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.migration.files import Line, listing
from doorstep.gateway.migration.history import Refused


class Records(msgspec.Struct, kw_only=True):
    """What a file comes to."""

    records: list[dict[str, Any]] = []
    refused: list[Refused] = []
    instructions: str | None = None  # the system prompt of all


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One example. ``turns`` are the messages that are no instructions."""

    system: str
    turns: list[dict[str, str]]
    expected: Any
    rest: dict[str, Any]  # of the record


def records(lines: Iterable[Line]) -> Records:
    """Return the records of all lines."""
    examples: list[tuple[str, Example]] = []
    found = Records()
    for line in lines:
        try:
            if line.error is not None:
                raise BadInput("line", line.error)
            examples.append((line.where.rpartition(":")[2], _example(line.value)))
        except BadInput as error:
            found.refused.append(Refused(line.where, f"{error.where}: {error.why}"))
    systems = {example.system for _, example in examples}
    if len(systems) == 1:
        found.instructions = systems.pop() or None
    for number, example in examples:
        given = _input(example, with_system=len(systems) > 1)
        found.records.append({"id": number, "input": given, "expected": example.expected} | example.rest)
    return found


def _example(row: Mapping[str, Any]) -> Example:
    asked, answer, choice = _parts(row)
    if choice.get("finish_reason") in ("length", "content_filter"):
        raise BadInput("finish_reason", f"the answer was cut off ({choice['finish_reason']})")
    if answer.get("role", "assistant") != "assistant":
        raise BadInput("messages", "the last one is not the assistant's")
    if answer.get("weight") == 0:
        raise BadInput("weight", "the answer has the weight 0: it is not to be learned from")
    if answer.get("tool_calls") or answer.get("function_call"):
        raise BadInput("tool_calls", "the answer is the call of a tool, which no record can hold")
    text = _text(answer.get("content"), "the answer")
    if not text:
        raise BadInput("content", f"the answer is empty{' (a refusal)' if answer.get('refusal') else ''}")
    system = [
        _text(each.get("content"), "an instruction") for each in asked if each.get("role") in ("system", "developer")
    ]
    turns = [_turn(each) for each in asked if each.get("role") not in ("system", "developer")]
    if not turns or not turns[0]["content"]:
        raise BadInput("messages", "nothing was asked")
    return Example(system="\n\n".join(system), turns=turns, expected=_value(text), rest=_rest(row))


def _parts(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any], Mapping[str, Any]]:
    """Return what was asked, the answer, and what else is said of the answer."""
    if isinstance(row.get("choices"), list):  # a stored completion, with the messages that its API has apart
        choice = _message(next(iter(row["choices"]), None))
        return _messages(row.get("messages")), _message(choice.get("message")), choice
    if row.get("object") == "response":
        spoken = [
            each for each in listing(row.get("output")) if isinstance(each, dict) and each.get("type") == "message"
        ]
        asked = row.get("input")
        instructions = [{"role": "system", "content": row["instructions"]}] if row.get("instructions") else []
        listed = [{"role": "user", "content": asked}] if isinstance(asked, str) else _messages(asked)
        return [*instructions, *listed], _message(spoken[-1] if spoken else None), {}
    if "preferred_output" in row:
        given = row.get("input")
        preferred = _messages(row["preferred_output"])
        return _messages(given.get("messages") if isinstance(given, dict) else given), preferred[-1], {}
    *asked, answer = _messages(row.get("messages"))
    return asked, answer, {}


def _messages(given: Any) -> list[dict[str, Any]]:
    listed = given.get("data") if isinstance(given, dict) else given
    if not isinstance(listed, list) or not listed:
        raise BadInput(
            "messages", "there are none; those of a stored completion are at /v1/chat/completions/ID/messages"
        )
    return [_message(each) for each in listed]


def _message(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise BadInput("messages", "a message is missing, or no object")
    return given


def _turn(message: Mapping[str, Any]) -> dict[str, str]:
    if message.get("role") not in ("user", "assistant") or message.get("tool_calls"):
        raise BadInput("messages", "tools were used before the answer, which no record can hold")
    return {"role": message["role"], "content": _text(message.get("content"), "a message")}


def _text(content: Any, what: str) -> str:
    """Return a content's text."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise BadInput("content", f"{what} is more than text")
    return "\n".join(part["text"] for part in parts)


def _value(text: str) -> Any:
    """Return the object that an answer is, to be graded field by field, or the answer as text."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) and value else text


def _input(example: Example, *, with_system: bool) -> Any:
    asked: Any = example.turns[0]["content"] if len(example.turns) == 1 else example.turns
    if with_system:
        return {"system": example.system, "messages": asked}
    return asked if isinstance(asked, str) else {"messages": asked}


def _rest(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stored completion says of itself."""
    rest: dict[str, Any] = {}
    if isinstance(row.get("id"), str):
        rest["id"] = row["id"]
    at = row.get("created") or row.get("created_at")
    if isinstance(at, int) and 0 < at < 253_402_300_800:
        rest["at"] = datetime.fromtimestamp(at, UTC).isoformat()
    user = row.get("user") or row.get("input_user")
    if isinstance(user, str):
        rest["customer"] = user
    return rest
