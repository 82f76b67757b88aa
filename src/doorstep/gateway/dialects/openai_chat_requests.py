"""Requests of OpenAI's chat completions, read into the canonical form.

The format is what OpenAI documents and what its followers add to it: ``reasoning_content`` (DeepSeek, GLM, vLLM),
``reasoning_details`` and ``reasoning`` (OpenRouter), ``thinking`` (DeepSeek, GLM), ``top_k`` and ``min_p`` (vLLM),
``cache_control`` (OpenRouter, LiteLLM).
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal, cast

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.chat import (
    AnswerFormat,
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
    ToolChoice,
    ToolResult,
)
from doorstep.gateway.dialects import wire

# Change nothing in what is sampled: labels, caching, speed and accounting of the hosted service. They pass to providers
# of this dialect and are left out towards others.
HARMLESS = frozenset((
    "model", "stream", "stream_options", "metadata", "store", "prediction", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention",
))  # fmt: skip

# What the canonical form does not hold, at the values where it asks for nothing. ``None`` is one for any field.
_NEUTRAL: Mapping[str, Sequence[Any]] = {
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
}

_WHY: Mapping[str, str] = {
    "functions": "deprecated by OpenAI; use tools",
    "function_call": "deprecated by OpenAI; use tool_choice",
}
_NOT_HERE = (
    "only a provider that speaks OpenAI chat itself can be asked for this; leave it out or choose a model of such a one"
)

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]


class _Request(msgspec.Struct, frozen=True):
    """The fields that the canonical form holds."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    stop: _Text | Annotated[list[_Text], msgspec.Meta(max_length=4)] | None = None
    seed: int | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    verbosity: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None


_HELD = frozenset(_Request.__struct_fields__)


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """What nothing is passed over in."""


def read(body: bytes) -> ChatRequest:
    """Read a request; ``BadInput`` names what is wrong in it, or what the canonical form does not hold."""
    fields = wire.fields(body)
    for name, value in fields.items():
        if name not in _HELD and name not in HARMLESS and value is not None and value not in _NEUTRAL.get(name, ()):
            raise BadInput(name[:100] or "body", _WHY.get(name, _NOT_HERE))
    asked = wire.convert(fields, _Request, "")
    return ChatRequest(
        messages=_read_messages(asked.messages),
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
        seed=asked.seed,
        n=asked.n or 1,
        logprobs=bool(asked.logprobs),
        top_logprobs=asked.top_logprobs,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias=asked.logit_bias,
        tools=[_read_tool(tool, f"tools[{place}]") for place, tool in enumerate(asked.tools or [])],
        tool_choice=_read_choice(asked.tool_choice),
        parallel_tool_calls=asked.parallel_tool_calls,
        answer_format=_read_format(asked.response_format),
        reasoning=_read_reasoning(asked),
        verbosity=asked.verbosity,
        user=asked.safety_identifier or asked.user,
        service_tier=asked.service_tier,
    )


def _read_messages(given: list[dict[str, Any]]) -> list[Message]:
    """Read messages; the results of tools that stand together are one message."""
    read_ones = [_read_message(message, f"messages[{place}]") for place, message in enumerate(given)]
    found: list[Message] = []
    for is_tool, group in groupby(read_ones, lambda message: message.role == "tool"):
        if is_tool:
            found.append(Message(role="tool", blocks=[block for message in group for block in message.blocks]))
        else:
            found += group
    return found


class _Function(_Strict):
    """``parsed_arguments`` is what the official SDK's helpers add for its reader and send back."""

    name: str
    arguments: str
    parsed_arguments: Any = None


class _Call(_Strict):
    id: str
    function: _Function
    type: Literal["function"] = "function"
    index: int | None = None  # some clients send back what a stream gave


class _Detail(_Strict):
    """A piece of reasoning as OpenRouter gives it and takes it back."""

    type: Literal["reasoning.text", "reasoning.encrypted", "reasoning.summary"]
    text: str | None = None
    summary: str | None = None
    data: str | None = None
    signature: str | None = None
    id: str | None = None
    index: int | None = None
    format: str | None = None


class _Words(_Strict):
    """Any message but those of the assistant and of tools."""

    role: Role
    content: str | list[dict[str, Any]]
    name: str | None = None


class _Specific(msgspec.Struct):
    """Where LiteLLM keeps what it does not know of an answer, and sends it back."""

    reasoning_details: list[dict[str, Any]] | None = None


class _Said(_Strict):
    """A message of the assistant. ``annotations``, the citations of an answer, are for its readers only.

    So is ``parsed``, which the official SDK's helpers add and send back.
    """

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None
    provider_specific_fields: _Specific | None = None
    annotations: Any = None
    parsed: Any = None
    audio: None = None
    function_call: None = None


class _Result(_Strict):
    """What a tool gave. ``name`` repeats what the call says."""

    role: Role
    tool_call_id: str
    content: str | list[dict[str, Any]]
    name: str | None = None


def _read_message(given: dict[str, Any], where: str) -> Message:
    role = given.get("role")
    if role in ("system", "developer", "user"):
        words = wire.convert(given, _Words, where)
        return Message(role=words.role, blocks=_read_content(words.content, words.role, where), name=words.name)
    if role == "assistant":
        return _read_said(wire.convert(given, _Said, where), where)
    if role == "tool":
        result = wire.convert(given, _Result, where)
        content = cast("list[Text | Image | File]", _read_content(result.content, "tool", where))
        return Message(role="tool", blocks=[ToolResult(call_id=result.tool_call_id, content=content)])
    if role == "function":
        raise BadInput(f"{where}.role", "deprecated by OpenAI; use tools, and role tool for what they give")
    raise BadInput(f"{where}.role", f"{role!r} is no role; there are system, developer, user, assistant, tool")


def _read_said(said: _Said, where: str) -> Message:
    blocks: list[Block] = []
    specific = said.provider_specific_fields or _Specific()
    if details := said.reasoning_details or specific.reasoning_details:
        blocks += [_read_detail(detail, f"{where}.reasoning_details[{place}]") for place, detail in enumerate(details)]
    elif thought := said.reasoning_content or said.reasoning:
        blocks.append(Thinking(text=thought))
    if said.content or (said.content == "" and not (said.tool_calls or said.refusal)):
        blocks += _read_content(said.content, "assistant", where)
    if said.refusal:
        blocks.append(Refusal(text=said.refusal))
    for place, given in enumerate(said.tool_calls or []):
        if given.get("type", "function") != "function":
            raise BadInput(f"{where}.tool_calls[{place}].type", f"{given['type']!r}: {_NOT_HERE}")
        call = wire.convert(given, _Call, f"{where}.tool_calls[{place}]")
        blocks.append(ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments))
    return Message(role="assistant", blocks=blocks, name=said.name)


def _read_detail(given: dict[str, Any], where: str) -> Thinking:
    detail = wire.convert(given, _Detail, where)
    return Thinking(
        text=detail.text or detail.summary or "", signature=detail.signature, redacted=detail.data, id=detail.id
    )


# The parts of a message's content


class _CacheControl(_Strict):
    type: Literal["ephemeral"]
    ttl: str | None = None


class _Breakpoint(_Strict):
    """OpenAI's own cache mark. Its times to live are not Anthropic's, so the default is taken there."""

    mode: Literal["explicit"]
    ttl: str | None = None


class _Part(_Strict):
    type: str
    cache_control: _CacheControl | None = None
    prompt_cache_breakpoint: _Breakpoint | None = None

    @property
    def cache(self) -> CacheMark | None:
        if self.cache_control is not None:
            return CacheMark(self.cache_control.ttl)
        return None if self.prompt_cache_breakpoint is None else CacheMark()


class _TextPart(_Part, kw_only=True):
    text: str


class _RefusalPart(_Part, kw_only=True):
    refusal: str


class _ImageUrl(_Strict):
    url: str
    detail: str | None = None


class _ImagePart(_Part, kw_only=True):
    image_url: _ImageUrl


class _InputAudio(_Strict):
    data: str
    format: str


class _AudioPart(_Part, kw_only=True):
    input_audio: _InputAudio


class _FileData(_Strict):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class _FilePart(_Part, kw_only=True):
    file: _FileData


_PARTS: Mapping[str, Sequence[str]] = {
    "system": ("text",),
    "developer": ("text",),
    "user": ("text", "image_url", "input_audio", "file"),
    "assistant": ("text", "refusal"),
    "tool": ("text", "image_url", "file"),
}


def _read_content(content: str | list[dict[str, Any]] | None, role: str, where: str) -> list[Block]:
    if isinstance(content, str):
        return [Text(text=content)]
    return [_read_part(part, role, f"{where}.content[{place}]") for place, part in enumerate(content or [])]


def _read_part(given: dict[str, Any], role: str, where: str) -> Block:
    kind = given.get("type")
    if kind not in _PARTS[role]:
        raise BadInput(f"{where}.type", f"{kind!r} is no part of a message of role {role}: {', '.join(_PARTS[role])}")
    match kind:
        case "text":
            words = wire.convert(given, _TextPart, where)
            return Text(text=words.text, cache=words.cache)
        case "refusal":
            return Refusal(text=wire.convert(given, _RefusalPart, where).refusal)
        case "image_url":
            image = wire.convert(given, _ImagePart, where)
            media_type, data = _from_data_url(image.image_url.url, f"{where}.image_url.url")
            url = image.image_url.url if data is None else None
            detail = image.image_url.detail
            return Image(url=url, data=data, media_type=media_type, detail=detail, cache=image.cache)
        case "input_audio":
            sound = wire.convert(given, _AudioPart, where).input_audio
            return Audio(data=sound.data, format=sound.format)
        case _:
            return _read_file(wire.convert(given, _FilePart, where), f"{where}.file")


def _read_file(part: _FilePart, where: str) -> File:
    given = part.file
    if (given.file_data is None) == (given.file_id is None):
        raise BadInput(where, "give one of file_data and file_id")
    about: dict[str, Any] = {"name": given.filename, "cache": part.cache}
    if given.file_data is None:
        return File(file_id=given.file_id, **about)
    if given.file_data.startswith(("http://", "https://")):  # as OpenRouter takes it
        return File(url=given.file_data, **about)
    media_type, data = _from_data_url(given.file_data, f"{where}.file_data")
    if data is None:
        return File(data=given.file_data, **about)
    if media_type != "text/plain":
        return File(data=data, media_type=media_type, **about)
    try:
        return File(text=base64.b64decode(data, validate=True).decode(), media_type=media_type, **about)
    except (binascii.Error, UnicodeDecodeError):
        raise BadInput(f"{where}.file_data", "not the base64 of UTF-8 text, as its media type says") from None


def _from_data_url(url: str, where: str) -> tuple[str | None, str | None]:
    """Return the media type and the base64 of a ``data:`` address, and nothing for any other."""
    if not url.startswith("data:"):
        return None, None
    about, comma, data = url[5:].partition(",")
    media_type, *rest = about.split(";")
    if not comma or "base64" not in rest:
        raise BadInput(where, "a data URL must look like data:image/png;base64,…")
    return media_type or None, data


# Tools, formats and reasoning


class _ToolFunction(_Strict):
    name: _Text
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(_Strict):
    type: Literal["function"]
    function: _ToolFunction
    cache_control: _CacheControl | None = None


class _Named(_Strict):
    name: _Text


class _ToolChoice(_Strict):
    type: Literal["function"]
    function: _Named


class _JsonSchema(_Strict):
    name: _Text
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class _SchemaFormat(_Strict):
    type: str
    json_schema: _JsonSchema


class _PlainFormat(_Strict):
    type: Literal["text", "json_object"]


class _Effort(_Strict):
    """How OpenRouter spells it."""

    effort: str | None = None
    max_tokens: int | None = None
    enabled: bool | None = None
    summary: str | None = None


class _Thinking(_Strict):
    """How DeepSeek and GLM spell it, with a budget as LiteLLM takes it."""

    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = None


def _read_tool(given: dict[str, Any], where: str) -> Tool:
    if (kind := given.get("type")) != "function":
        raise BadInput(f"{where}.type", f"{kind!r}: {_NOT_HERE}")
    tool = wire.convert(given, _Tool, where)
    cache = None if tool.cache_control is None else CacheMark(tool.cache_control.ttl)
    of = tool.function
    return Tool(name=of.name, description=of.description, parameters=of.parameters, strict=of.strict, cache=cache)


def _read_choice(given: str | dict[str, Any] | None) -> ToolChoice | None:
    if given is None:
        return None
    if isinstance(given, str):
        if given not in ("auto", "none", "required"):
            raise BadInput("tool_choice", f"{given!r} is none; there are auto, none, required and a function by name")
        return ToolChoice(mode=cast("Literal['auto', 'none', 'required']", given))
    if (kind := given.get("type")) != "function":
        raise BadInput("tool_choice.type", f"{kind!r}: {_NOT_HERE}")
    return ToolChoice(mode="one", name=wire.convert(given, _ToolChoice, "tool_choice").function.name)


def _read_format(given: dict[str, Any] | None) -> AnswerFormat | None:
    if given is None:
        return None
    if given.get("type") == "json_schema":
        wanted = wire.convert(given, _SchemaFormat, "response_format").json_schema
        return AnswerFormat(
            schema=wanted.schema or {}, name=wanted.name, description=wanted.description, strict=wanted.strict
        )
    return AnswerFormat() if wire.convert(given, _PlainFormat, "response_format").type == "json_object" else None


def _read_reasoning(asked: _Request) -> Reasoning | None:
    effort, budget, summary = asked.reasoning_effort, None, None
    off = effort == "none"
    if asked.thinking is not None:
        thinking = wire.convert(asked.thinking, _Thinking, "thinking")
        budget, off = thinking.budget_tokens, thinking.type == "disabled"
    if asked.reasoning is not None:
        wanted = wire.convert(asked.reasoning, _Effort, "reasoning")
        effort, budget, summary = wanted.effort or effort, wanted.max_tokens or budget, wanted.summary
        off = off or wanted.enabled is False or effort == "none"
    if off:
        return Reasoning(off=True)
    if effort is None and asked.thinking is None and asked.reasoning is None:
        return None
    return Reasoning(effort=effort, budget=budget, summary=summary)
