"""Requests of Anthropic's messages as they are sent to a provider. What needs a rule on its way from another dialect:

- ``max_tokens`` must be said here. Where the client did not, it is ``DEFAULT_MAX_TOKENS``, on top of a thinking budget,
  which it includes.
- System and developer messages that lead become ``system``; later ones stay in their place, as role ``system``.
- Neighbours of one role become one message, and the results of tools come first in it; a text without a character,
  which Anthropic refuses, is left out.
- Reasoning that OpenAI sealed is left out, as Anthropic lets one do with reasoning of earlier turns: it refuses seals
  that it did not make, and a conversation may change its provider.
- A refusal in the history is the model's words and goes as text.
- A tool without parameters takes an empty object. The name of an answer's schema is a label and is left out.
- The id of a reasoning item has no field here, so a provider gets the signature alone.
"""

import base64
import binascii
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.chat import (
    Audio,
    Block,
    CacheMark,
    ChatRequest,
    File,
    Image,
    Message,
    Reasoning,
    Refusal,
    Role,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
)
from doorstep.gateway.dialects import anthropic_wire as form
from doorstep.gateway.dialects import openai_responses_seals as seals
from doorstep.gateway.dialects.base import Head

DEFAULT_MAX_TOKENS = 8192

_EFFORTS = ("low", "medium", "high", "xhigh", "max")


def write_request(request: ChatRequest, *, head: Head, model: str) -> bytes:
    """Write a request for a provider that speaks this dialect; a stream ends with its usage in any case."""
    _check_sayable(request)
    system, turns = _write_messages(request.messages)
    thinking, config = _write_reasoning(request.reasoning), _write_config(request)
    fields: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS + ((thinking and thinking.budget_tokens) or 0),
        "system": system,
        "messages": turns,
        "tools": [_write_tool(tool) for tool in request.tools],
        "tool_choice": _write_choice(request),
        "thinking": thinking,
        "output_config": config,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop_sequences": request.stop,
        "metadata": None if request.user is None else form.Metadata(user_id=request.user),
        "service_tier": request.service_tier and _write_tier(request.service_tier),
        "stream": True if head.stream else None,
    }
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None and value != []})


def _check_sayable(request: ChatRequest) -> None:
    """Refuse what Anthropic's models do not offer, in words for a client that does not speak their dialect."""
    refused: Iterable[tuple[str, Any, str]] = (
        ("n", request.n > 1, "Anthropic's models give one answer; ask several times"),
        ("temperature", (request.temperature or 0) > 1, "Anthropic's models take 0 to 1"),
        ("logprobs", request.logprobs or request.top_logprobs, "Anthropic's models tell no log-probabilities"),
        ("min_p", request.min_p, "Anthropic's models take no such limit"),
        ("seed", request.seed is not None, "Anthropic's models take no seed"),
        ("presence_penalty", request.presence_penalty, "Anthropic's models take no penalties"),
        ("frequency_penalty", request.frequency_penalty, "Anthropic's models take no penalties"),
        ("logit_bias", request.logit_bias, "Anthropic's models take no bias on tokens"),
        ("verbosity", request.verbosity not in (None, "medium"), "Anthropic's models have no such setting"),
    )
    for where, asked, why in refused:
        if asked:
            raise BadInput(where, f"{why}; leave it out or use another model")


def _write_messages(found: list[Message]) -> tuple[list[form.WireBlock], list[form.Message]]:
    system: list[form.WireBlock] = []
    turns: list[tuple[Literal["user", "assistant", "system"], list[form.WireBlock]]] = []
    for place, message in enumerate(found):
        where = f"messages[{place}]"
        if message.name is not None:
            raise BadInput(f"{where}.name", "Anthropic's models know no names of participants; leave it out")
        written = [
            _write_block(block, f"{where}.content[{i}]")
            for i, block in enumerate(message.blocks)
            if not (isinstance(block, Thinking) and seals.for_provider(block))
        ]
        blocks = [block for block in written if not (isinstance(block, form.Text) and not block.text)]
        role = _write_role(message.role)
        if role == "system" and not all(isinstance(block, form.Text) for block in blocks):
            raise BadInput(f"{where}.content", "Anthropic's models take only text from the system")
        if role == "system" and not turns:
            system += blocks
        elif blocks and turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        elif blocks:
            turns.append((role, blocks))
    return system, [form.Message(role=role, content=_results_first(blocks)) for role, blocks in turns]


def _write_role(role: Role) -> Literal["user", "assistant", "system"]:
    if role == "developer":
        return "system"
    return "user" if role == "tool" else role


def _results_first(blocks: list[form.WireBlock]) -> list[form.WireBlock]:
    """Anthropic refuses a message in which anything stands before the results of the tools that it answers with."""
    return sorted(blocks, key=lambda block: not isinstance(block, form.ToolResult))


def _write_block(block: Block, where: str) -> form.WireBlock:
    if isinstance(block, Text):
        return _write_text(block)
    if isinstance(block, Image):
        return _write_image(block, where)
    if isinstance(block, File):
        return _write_file(block, where)
    if isinstance(block, ToolCall):
        control = _control(block.cache)
        return form.ToolUse(id=block.id, name=block.name, input=_write_input(block, where), cache_control=control)
    if isinstance(block, ToolResult):
        return _write_result(block, where)
    if isinstance(block, Refusal):
        return form.Text(text=block.text)
    if isinstance(block, Audio):
        raise BadInput(where, "Anthropic's models take no audio; send its transcript")
    if block.redacted is not None:
        return form.Redacted(data=block.redacted)
    # Without a signature it is for the provider to say whether it takes it: Anthropic does not, others here do.
    return form.Thinking(thinking=block.text, signature=block.signature or "")


def _write_text(block: Text) -> form.Text:
    return form.Text(text=block.text, cache_control=_control(block.cache))


def _write_image(block: Image, where: str) -> form.Image:
    if block.detail == "low":
        raise BadInput(where, "Anthropic's models see pictures in full detail; leave detail out or make it auto")
    source: form.Base64 | form.Url | form.FileId
    if block.data is not None:
        if block.media_type is None:
            raise BadInput(where, "the picture's media type must be said, such as image/png")
        source = form.Base64(media_type=block.media_type, data=block.data)
    elif block.url is not None:
        source = form.Url(url=block.url)
    else:
        source = form.FileId(file_id=block.file_id or "")
    return form.Image(source=source, cache_control=_control(block.cache))


def _write_file(block: File, where: str) -> form.Document:
    source: form.Base64 | form.Url | form.FileId | form.Plain
    if block.text is not None:
        source = form.Plain(media_type="text/plain", data=block.text)
    elif block.data is not None:
        source = _write_data(block.data, block.media_type, where)
    elif block.url is not None:
        source = form.Url(url=block.url)
    else:
        source = form.FileId(file_id=block.file_id or "")
    return form.Document(source=source, title=block.name, cache_control=_control(block.cache))


def _write_data(data: str, media_type: str | None, where: str) -> form.Base64 | form.Plain:
    if media_type == "application/pdf":
        return form.Base64(media_type=media_type, data=data)
    if media_type is None or not media_type.startswith("text/"):
        raise BadInput(where, f"Anthropic's models read PDF and text, not {media_type or 'a file of unknown type'}")
    try:
        return form.Plain(media_type="text/plain", data=base64.b64decode(data, validate=True).decode())
    except (binascii.Error, UnicodeDecodeError):
        raise BadInput(where, "must be base64 of text in UTF-8") from None


def _write_result(block: ToolResult, where: str) -> form.ToolResult:
    content: list[form.Text | form.Image | form.Document] = []
    for number, part in enumerate(block.content):
        if isinstance(part, Text):
            content.append(_write_text(part))
        elif isinstance(part, Image):
            content.append(_write_image(part, f"{where}.content[{number}]"))
        else:
            content.append(_write_file(part, f"{where}.content[{number}]"))
    return form.ToolResult(
        tool_use_id=block.call_id,
        content=content or None,
        is_error=block.is_error or None,
        cache_control=_control(block.cache),
    )


def _write_input(block: ToolCall, where: str) -> msgspec.Raw:
    text = block.arguments or "{}"
    try:
        form.objects.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise BadInput(f"{where}.arguments", "Anthropic's models take only a JSON object back") from None
    return msgspec.Raw(text.encode())


def _write_tool(tool: Tool) -> form.Tool:
    return form.Tool(
        name=tool.name,
        description=tool.description,
        input_schema={"type": "object"} | (tool.parameters or {"properties": {}}),
        strict=tool.strict,
        cache_control=_control(tool.cache),
    )


def _write_choice(request: ChatRequest) -> form.ToolChoice | None:
    choice, parallel = request.tool_choice, request.parallel_tool_calls
    if not request.tools and (choice is None or choice.mode in ("auto", "none")):
        return None  # Anthropic refuses a choice among no tools
    if choice is not None and choice.mode == "none":
        return form.ToolChoice(type="none")
    if choice is None and parallel is None:
        return None
    kind: Literal["auto", "any", "tool"] = "auto"
    if choice is not None and choice.mode != "auto":
        kind = "any" if choice.mode == "required" else "tool"
    no_parallel = None if parallel is None else not parallel
    name = None if choice is None else choice.name
    return form.ToolChoice(type=kind, name=name, disable_parallel_tool_use=no_parallel)


def _write_reasoning(reasoning: Reasoning | None) -> form.ThinkingConfig | None:
    if reasoning is None:
        return None
    if reasoning.off or reasoning.effort == "none":
        return form.ThinkingConfig(type="disabled")
    display: Literal["summarized"] | None = None if reasoning.summary is None else "summarized"
    if reasoning.budget is not None:
        return form.ThinkingConfig(type="enabled", budget_tokens=reasoning.budget, display=display)
    return form.ThinkingConfig(type="adaptive", display=display)


def _write_config(request: ChatRequest) -> form.OutputConfig | None:
    effort = request.reasoning.effort if request.reasoning else None
    if effort == "none":
        effort = None
    if effort is not None and effort not in _EFFORTS:
        raise BadInput("reasoning_effort", f"Anthropic's models take {', '.join(_EFFORTS)}, not {effort}")
    asked, shape = request.answer_format, None
    if asked is not None:
        if asked.schema is None:
            raise BadInput("response_format", "Anthropic's models write JSON to a schema; give one as json_schema")
        about = {} if asked.description is None else {"description": asked.description}
        shape = form.Format(type="json_schema", schema=about | asked.schema)
    return None if effort is None and shape is None else form.OutputConfig(effort=effort, format=shape)


def _write_tier(tier: str) -> str:
    for theirs, ours in form.TIERS.items():
        if ours == tier:
            return theirs
    raise BadInput("service_tier", f"Anthropic's service has {' and '.join(form.TIERS.values())}, not {tier}")


def _control(mark: CacheMark | None) -> form.CacheControl | None:
    return None if mark is None else form.CacheControl(type="ephemeral", ttl=mark.ttl)
