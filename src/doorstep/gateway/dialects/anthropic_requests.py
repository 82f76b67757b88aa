"""Requests of Anthropic's messages as clients send them, read into canonical ones.

What has no canonical form is refused by its name: the tools that Anthropic runs itself and their results, citations,
containers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeVar

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.chat import (
    AnswerFormat,
    Block,
    CacheMark,
    ChatRequest,
    File,
    Image,
    Message,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from doorstep.gateway.dialects import anthropic_wire as form
from doorstep.gateway.dialects import wire

_UNSAYABLE = "cannot be said to a provider of another dialect; leave it out, or use a model of Anthropic"

_T = TypeVar("_T", bound=form.Prompt)


def _decode(decoder: "msgspec.json.Decoder[_T]", body: bytes) -> _T:
    wire.fields(body)  # refuses a field that comes twice
    with _advice():
        return wire.decode(decoder, body)


@contextmanager
def _advice() -> Iterator[None]:
    """Say what to do about a field or value that this dialect may well have, but no other."""
    try:
        yield
    except BadInput as error:
        if error.why.startswith("Invalid"):
            raise BadInput(error.where, f"{error.why} {_UNSAYABLE}") from None
        if error.why.startswith(
            ("Object contains unknown field", "Expected `null`", "Expected `array` of length <= 0")
        ):
            raise BadInput(error.where, _UNSAYABLE) from None
        raise


def read(body: bytes) -> ChatRequest:
    """Read a request; ``BadInput`` names a field that no other dialect has a form for."""
    asked = _decode(form.requests, body)
    return msgspec.structs.replace(
        _prompt(asked),
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        stop=asked.stop_sequences or [],
        user=asked.metadata and asked.metadata.user_id,
        service_tier=asked.service_tier and form.TIERS[asked.service_tier],
    )


def read_prompt(body: bytes) -> ChatRequest:
    """Read a request of which only the tokens are to be counted, which says nothing of sampling."""
    return _prompt(_decode(form.prompts, body))


def _prompt(asked: form.Prompt) -> ChatRequest:
    choice, config = asked.tool_choice, asked.output_config or form.OutputConfig()
    answer_format = config.format or asked.output_format
    no_parallel = choice.disable_parallel_tool_use if choice else None
    found = [*_read_system(asked.system), *_read_messages(asked.messages)]
    return ChatRequest(
        messages=_mark_last(found, asked.cache_control) if asked.cache_control else found,
        tools=[_read_tool(tool, f"tools[{place}]") for place, tool in enumerate(asked.tools or [])],
        tool_choice=None if choice is None else _read_choice(choice),
        parallel_tool_calls=None if no_parallel is None else not no_parallel,
        # Anthropic holds every answer to its schema, which others call strict.
        answer_format=None if answer_format is None else AnswerFormat(schema=answer_format.schema, strict=True),
        reasoning=_read_reasoning(asked.thinking, config.effort),
    )


def _read_system(system: str | list[form.Text] | None) -> Iterator[Message]:
    if system:
        blocks = [form.Text(text=system)] if isinstance(system, str) else system
        yield Message(role="system", blocks=[_read_text(block) for block in blocks])


_HELD: dict[str, tuple[type[Block], ...]] = {
    "user": (Text, Image, File, ToolResult),
    "assistant": (Text, Thinking, ToolCall),
    "system": (Text,),
}


def _read_messages(found: list[form.Message]) -> Iterator[Message]:
    for place, message in enumerate(found):
        where = f"messages[{place}].content"
        given = [form.Text(text=message.content)] if isinstance(message.content, str) else message.content
        blocks = [_read_block(block, f"{where}[{number}]") for number, block in enumerate(given)]
        for number, block in enumerate(blocks):
            if not isinstance(block, _HELD[message.role]):
                kind = given[number].__struct_config__.tag
                raise BadInput(f"{where}[{number}].type", f"a message of role {message.role} holds no {kind}")
        if not blocks:
            yield Message(role=message.role, blocks=[])
        for is_result, group in groupby(blocks, lambda block: isinstance(block, ToolResult)):
            yield Message(role="tool" if is_result else message.role, blocks=list(group))


def _read_block(block: form.WireBlock, where: str) -> Block:
    if isinstance(block, form.Text):
        return _read_text(block)
    if isinstance(block, form.Image):
        return _read_image(block)
    if isinstance(block, form.Document):
        return _read_document(block, where)
    if isinstance(block, form.ToolUse):
        arguments = bytes(block.input)
        if not arguments.startswith(b"{"):
            raise BadInput(f"{where}.input", "must be an object")
        return ToolCall(id=block.id, name=block.name, arguments=arguments.decode(), cache=_mark(block.cache_control))
    if isinstance(block, form.ToolResult):
        return _read_result(block, where)
    if isinstance(block, form.Redacted):
        item, data = form.without_item(block.data)
        return Thinking(redacted=data, id=item)
    item, signature = form.without_item(block.signature or "")
    return Thinking(text=block.thinking, signature=signature, id=item)


def _read_text(block: form.Text) -> Text:
    return Text(text=block.text, cache=_mark(block.cache_control))


def _read_image(block: form.Image) -> Image:
    source, cache = block.source, _mark(block.cache_control)
    if isinstance(source, form.Base64):
        return Image(data=source.data, media_type=source.media_type, cache=cache)
    if isinstance(source, form.Url):
        return Image(url=source.url, cache=cache)
    return Image(file_id=source.file_id, cache=cache)


def _read_document(block: form.Document, where: str) -> File:
    if block.citations and block.citations.enabled:
        raise BadInput(f"{where}.citations", _UNSAYABLE)
    source, name, cache = block.source, block.title, _mark(block.cache_control)
    if isinstance(source, form.Base64):
        return File(data=source.data, media_type=source.media_type, name=name, cache=cache)
    if isinstance(source, form.Url):
        return File(url=source.url, media_type="application/pdf", name=name, cache=cache)
    if isinstance(source, form.FileId):
        return File(file_id=source.file_id, name=name, cache=cache)
    if isinstance(source, form.Plain):
        return File(text=source.data, media_type=source.media_type, name=name, cache=cache)
    # Where nothing is cited, its division into parts has no meaning.
    parts = source.content if isinstance(source.content, str) else "\n".join(part.text for part in source.content)
    return File(text=parts, media_type="text/plain", name=name, cache=cache)


def _read_result(block: form.ToolResult, where: str) -> ToolResult:
    given = [form.Text(text=block.content)] if isinstance(block.content, str) else block.content or []
    content: list[Text | Image | File] = []
    for number, part in enumerate(given):
        if isinstance(part, form.Text):
            content.append(_read_text(part))
        elif isinstance(part, form.Image):
            content.append(_read_image(part))
        else:
            content.append(_read_document(part, f"{where}.content[{number}]"))
    return ToolResult(
        call_id=block.tool_use_id,
        content=content,
        is_error=bool(block.is_error),
        cache=_mark(block.cache_control),
    )


def _read_tool(given: dict[str, Any], where: str) -> Tool:
    if (kind := given.get("type")) not in (None, "custom"):
        raise BadInput(f"{where}.type", f"{kind!r} {_UNSAYABLE}")
    with _advice():
        tool = wire.convert(given, form.Tool, where)
    if tool.defer_loading:
        raise BadInput(f"{where}.defer_loading", _UNSAYABLE)
    return Tool(
        name=tool.name,
        description=tool.description,
        parameters=tool.input_schema,
        strict=tool.strict,
        cache=_mark(tool.cache_control),
    )


def _read_choice(choice: form.ToolChoice) -> ToolChoice:
    if choice.type == "tool":
        if choice.name is None:
            raise BadInput("tool_choice.name", "says which tool to use, where type is tool")
        return ToolChoice(mode="one", name=choice.name)
    return ToolChoice(mode="required" if choice.type == "any" else choice.type)


def _read_reasoning(thinking: form.ThinkingConfig | None, effort: str | None) -> Reasoning | None:
    if thinking is None:
        return None if effort is None else Reasoning(effort=effort)
    if thinking.type == "enabled" and thinking.budget_tokens is None:
        raise BadInput("thinking.budget_tokens", "says for how many tokens, where type is enabled")
    # "omitted" is what every other dialect does where it is asked for no summary.
    summary = "auto" if thinking.display == "summarized" else None
    return Reasoning(effort=effort, budget=thinking.budget_tokens, summary=summary, off=thinking.type == "disabled")


def _mark(control: form.CacheControl | None) -> CacheMark | None:
    return None if control is None else CacheMark(ttl=control.ttl)


def _mark_last(found: list[Message], control: form.CacheControl) -> list[Message]:
    """Mark the last block that can be cached, which is what ``cache_control`` of a whole request stands for."""
    for place in reversed(range(len(found))):
        blocks = list(found[place].blocks)
        for number in reversed(range(len(blocks))):
            block = blocks[number]
            if isinstance(block, Text | Image | File | ToolCall | ToolResult):
                blocks[number] = msgspec.structs.replace(block, cache=block.cache or _mark(control))
                return [*found[:place], msgspec.structs.replace(found[place], blocks=blocks), *found[place + 1 :]]
    return found
