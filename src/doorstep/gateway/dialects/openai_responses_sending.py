"""Requests of OpenAI's Responses as they are sent to a provider, and the parts of them that its answers repeat.

A tool that failed has no mark here: its result begins with ``Error:``. Nor is there a budget of thinking in tokens:
that is written as an effort. Reasoning without a text that another provider sealed is left out: nobody else can read
it, and a conversation may change its provider.
"""

import base64
from collections.abc import Iterator
from typing import Any

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.chat import (
    AnswerFormat,
    Block,
    ChatRequest,
    File,
    Image,
    Message,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from doorstep.gateway.dialects import openai_responses_seals as seals
from doorstep.gateway.dialects.base import Head

# Budgets of thinking as OpenAI's words: up to so many tokens is this effort.
_EFFORTS = ((4096, "low"), (16384, "medium"))


def write_request(request: ChatRequest, *, head: Head, model: str) -> bytes:
    """Write a request for a provider that speaks this dialect, for which nothing is to be stored there."""
    _check_sayable(request)
    instructions, rest = split_instructions(request.messages)
    body = {
        "model": model,
        "instructions": instructions,
        "input": [item for index, message in rest for item in _write_message(message, f"messages[{index}]")],
        "tools": [write_tool(tool) for tool in request.tools] or None,
        "tool_choice": write_choice(request.tool_choice) if request.tool_choice else None,
        "parallel_tool_calls": request.parallel_tool_calls,
        "text": write_text(request),
        "reasoning": write_effort(request.reasoning) if request.reasoning else None,
        "include": _include(request) or None,
        "max_output_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_logprobs": request.top_logprobs,
        "user": request.user,
        "service_tier": request.service_tier,
        "store": False,
        "stream": head.stream,
    }
    return msgspec.json.encode({name: value for name, value in body.items() if value is not None})


def _check_sayable(request: ChatRequest) -> None:
    unsayable = {
        "n": request.n > 1,
        "top_k": request.top_k is not None,
        "min_p": bool(request.min_p),
        "stop": bool(request.stop),
        "seed": request.seed is not None,
        "presence_penalty": bool(request.presence_penalty),
        "frequency_penalty": bool(request.frequency_penalty),
        "logit_bias": bool(request.logit_bias),
    }
    for name, said in unsayable.items():
        if said:
            raise BadInput(name, "the Responses API of this model's provider has no such setting; leave it out")


def split_instructions(messages: list[Message]) -> tuple[str | None, list[tuple[int, Message]]]:
    """Return the system message that leads, if it is plain text, and the other messages with their places."""
    numbered = list(enumerate(messages))
    first = messages[0] if len(messages) > 1 else None
    if first is None or first.role != "system" or len(first.blocks) != 1 or not isinstance(first.blocks[0], Text):
        return None, numbered
    return first.blocks[0].text, numbered[1:]


def _write_message(message: Message, where: str) -> list[dict[str, Any]]:
    if message.name is not None:
        raise BadInput(f"{where}.name", "the Responses API has no names of speakers; write the name into the text")
    if message.role == "assistant":
        return list(_write_turn(message.blocks, where))
    if message.role == "tool":
        return [_write_result(block, where) for block in message.blocks if isinstance(block, ToolResult)]
    return [{"type": "message", "role": message.role, "content": _write_content(message.blocks, where)}]


def _write_turn(blocks: list[Block], where: str) -> Iterator[dict[str, Any]]:
    """Yield the items of a turn of the model; words in a row are one message."""
    words: list[dict[str, Any]] = []
    for block in blocks:
        if isinstance(block, Text):
            words.append({"type": "output_text", "text": block.text, "annotations": []})
            continue
        if isinstance(block, Refusal):
            words.append({"type": "refusal", "refusal": block.text})
            continue
        if words:
            yield _write_words(words)
            words = []
        if isinstance(block, ToolCall):
            yield {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": block.arguments}
        elif isinstance(block, Thinking):
            yield from _write_thinking(block)
        else:
            raise _misplaced(block, "assistant", where)
    if words:
        yield _write_words(words)


def _write_words(words: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a message of the model; text alone is plain, which every server takes without the id that parts need."""
    plain = len(words) == 1 and words[0]["type"] == "output_text"
    return {"type": "message", "role": "assistant", "content": words[0]["text"] if plain else words}


def _write_thinking(block: Thinking) -> Iterator[dict[str, Any]]:
    """Yield the item, if there is anything that the provider can read."""
    own = seals.for_provider(block)
    summary = [{"type": "summary_text", "text": block.text}] if block.text else []
    item = {"type": "reasoning", "summary": summary}
    if own is not None:
        # An id alone is looked up in what is stored, and nothing is: "Item with id 'rs_…' not found".
        known = {"id": block.id} if block.id is not None else {}
        yield item | known | {"encrypted_content": own}
    elif summary:
        yield item


def _write_result(block: ToolResult, where: str) -> dict[str, Any]:
    content: list[Block] = list(block.content)
    if block.is_error:
        first = content[0].text if content and isinstance(content[0], Text) else None
        content = [Text(text="Error:" if first is None else f"Error: {first}"), *content[first is not None :]]
    output = _write_content(content, where) if content else ""
    return {"type": "function_call_output", "call_id": block.call_id, "output": output}


def _write_content(blocks: list[Block], where: str) -> str | list[dict[str, Any]]:
    if len(blocks) == 1 and isinstance(blocks[0], Text):
        return blocks[0].text
    return [_write_part(block, where) for block in blocks]


def _write_part(block: Block, where: str) -> dict[str, Any]:
    match block:
        case Text():
            return {"type": "input_text", "text": block.text}
        case Image():
            place = {"file_id": block.file_id} if block.file_id is not None else {"image_url": _image_url(block, where)}
            return {"type": "input_image", "detail": block.detail or "auto", **place}
        case File():
            name = {} if block.name is None else {"filename": block.name}
            return {"type": "input_file", **name, **_file_place(block)}
        case _:
            raise _misplaced(block, "user", where)


def _image_url(image: Image, where: str) -> str:
    if image.data is None:
        return image.url or ""
    if image.media_type is None:
        raise BadInput(where, "an image needs its media type; send it as a data address: data:TYPE;base64,DATA")
    return f"data:{image.media_type};base64,{image.data}"


def _file_place(file: File) -> dict[str, str]:
    if file.file_id is not None:
        return {"file_id": file.file_id}
    if file.url is not None:
        return {"file_url": file.url}
    if file.text is not None:
        return {"file_data": f"data:text/plain;base64,{base64.b64encode(file.text.encode()).decode()}"}
    data = file.data or ""
    return {"file_data": data if file.media_type is None else f"data:{file.media_type};base64,{data}"}


def _misplaced(block: Block, role: str, where: str) -> BadInput:
    kind = type(block).__name__
    return BadInput(where, f"{kind} in a message of role {role} has no form in the Responses API; leave it out")


def write_tool(tool: Tool) -> dict[str, Any]:
    """Return a tool. A missing ``strict`` is true here and false elsewhere, so it is always said."""
    described = {} if tool.description is None else {"description": tool.description}
    strict = bool(tool.strict)
    return {"type": "function", "name": tool.name, **described, "parameters": tool.parameters, "strict": strict}


def write_choice(choice: ToolChoice) -> str | dict[str, Any]:
    """Return a ``tool_choice``."""
    return {"type": "function", "name": choice.name} if choice.mode == "one" else choice.mode


def write_text(request: ChatRequest) -> dict[str, Any] | None:
    """Return ``text``, what is asked of the answer's words; None where nothing is."""
    form = request.answer_format
    text: dict[str, Any] = {} if form is None else {"format": _write_format(form)}
    if request.verbosity is not None:
        text["verbosity"] = request.verbosity
    return text or None


def _write_format(form: AnswerFormat) -> dict[str, Any]:
    if form.schema is None:
        return {"type": "json_object"}
    said = {"description": form.description, "strict": form.strict}
    fields = {name: value for name, value in said.items() if value is not None}
    return {"type": "json_schema", "name": form.name or "answer", "schema": form.schema, **fields}


def write_effort(reasoning: Reasoning) -> dict[str, Any]:
    """Return ``reasoning``."""
    effort = "none" if reasoning.off else reasoning.effort
    if effort is None and reasoning.budget is not None:
        effort = next((effort for most, effort in _EFFORTS if reasoning.budget <= most), "high")
    said = {"effort": effort, "summary": reasoning.summary}
    return {name: value for name, value in said.items() if value is not None}


def _include(request: ChatRequest) -> list[str]:
    """Return what is to be given beyond the usual.

    Sealed reasoning is asked for only where the model is known to reason: others answer "Encrypted content is not
    supported with this model".
    """
    asked = request.reasoning is not None and not request.reasoning.off
    thought = any(
        isinstance(block, Thinking) and seals.for_provider(block) for turn in request.messages for block in turn.blocks
    )
    wanted = {"message.output_text.logprobs": request.logprobs, "reasoning.encrypted_content": asked or thought}
    return [name for name, on in wanted.items() if on]
