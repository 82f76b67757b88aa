"""Requests of OpenAI's Responses as clients send them, read into canonical ones.

Nothing is kept between calls: a request must hold its whole conversation, and what refers to something stored (an
earlier answer, a conversation, a prompt template) is refused.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

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
    Refusal,
    Role,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from doorstep.gateway.dialects import openai_responses_seals as seals
from doorstep.gateway.dialects import wire

PARAGRAPH = "\n\n"  # between the parts of a summary, which are one text in the canonical form

# Left out across dialects, for they change nothing in the answer: labels and caching of the hosted service, and limits
# on its hosted tools, which are refused themselves. Cache marks are not written either: OpenAI caches by itself, and
# its older models refuse them.
HARMLESS = frozenset((
    "model", "stream", "stream_options", "metadata", "client_metadata", "store", "prompt_cache_key",
    "prompt_cache_retention", "max_tool_calls",
))  # fmt: skip

_WHOLE = "nothing is stored here; send the whole conversation in `input` and set `store` to false"

# Refused across dialects but at the values given, where they ask for nothing; and what to do instead.
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "previous_response_id": ((), _WHOLE),
    "conversation": ((), _WHOLE),
    "prompt": ((), "the template is stored at OpenAI; write its text in `instructions` and `input`"),
    "background": ((False,), "leave it out and wait for the answer, or stream it"),
    "truncation": (("disabled",), 'only "disabled" can be kept; shorten `input` yourself'),
}


_T = TypeVar("_T")

_UNTRANSLATED = "has no form in the dialect of this model's provider; leave it out, or use a model of OpenAI's"


# Requests on the wire. Fields named ``id``, ``status`` and ``phase`` are labels of items, and are not read on.
# ``parsed`` and ``parsed_arguments`` are what the SDKs' helpers add for their readers, and what some send back.


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not named here cannot be translated."""


class _Breakpoint(_Strict, frozen=True):
    mode: Literal["explicit"]
    ttl: str | None = None


class _InputText(_Strict, frozen=True, tag_field="type", tag="input_text"):
    text: str
    prompt_cache_breakpoint: _Breakpoint | None = None


class _OutputText(_Strict, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []  # where a hosted tool found what the text says
    logprobs: list[Any] = []
    parsed: Any = None


class _RefusalPart(_Strict, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


class _InputImage(_Strict, frozen=True, tag_field="type", tag="input_image"):
    image_url: str | None = None
    file_id: str | None = None
    detail: str = "auto"
    prompt_cache_breakpoint: _Breakpoint | None = None


class _InputFile(_Strict, frozen=True, tag_field="type", tag="input_file"):
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None
    detail: Literal["auto"] = "auto"
    prompt_cache_breakpoint: _Breakpoint | None = None


_Content = _InputText | _OutputText | _RefusalPart | _InputImage | _InputFile


class _MessageItem(_Strict, frozen=True, tag_field="type", tag="message"):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[_Content]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class _Caller(_Strict, frozen=True):
    type: Literal["direct"]


class _CallItem(_Strict, frozen=True, tag_field="type", tag="function_call"):
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    caller: _Caller | None = None
    parsed_arguments: Any = None


class _OutputItem(_Strict, frozen=True, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str | list[_InputText | _InputImage | _InputFile]
    id: str | None = None
    name: str | None = None
    status: str | None = None
    caller: _Caller | None = None


class _SummaryText(_Strict, frozen=True, tag_field="type", tag="summary_text"):
    text: str


class _ReasoningText(_Strict, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class _ReasoningItem(_Strict, frozen=True, tag_field="type", tag="reasoning"):
    summary: list[_SummaryText] = []
    content: list[_ReasoningText] = []
    encrypted_content: str | None = None
    id: str | None = None
    status: str | None = None


_Item = _MessageItem | _CallItem | _OutputItem | _ReasoningItem


class _FunctionTool(_Strict, frozen=True, tag_field="type", tag="function"):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class _FunctionChoice(_Strict, frozen=True, tag_field="type", tag="function"):
    name: str


class _PlainFormat(_Strict, frozen=True, tag_field="type", tag="text"):
    pass


class _ObjectFormat(_Strict, frozen=True, tag_field="type", tag="json_object"):
    pass


class _SchemaFormat(_Strict, frozen=True, tag_field="type", tag="json_schema"):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class _TextSettings(_Strict, frozen=True):
    format: _PlainFormat | _ObjectFormat | _SchemaFormat | None = None
    verbosity: str | None = None


class _ReasoningSettings(_Strict, frozen=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None  # the older name of ``summary``
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class _CacheOptions(_Strict, frozen=True):
    mode: str | None = None
    ttl: str | None = None
    comparison_response_id: str | None = None
    prewarm: Literal[False] | None = None


_Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",  # always given
    # Of hosted tools, which are refused, and of items that are read later:
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class _Request(_Strict, frozen=True):
    input: str | list[Any]
    instructions: str | None = None
    tools: list[_FunctionTool] = []
    tool_choice: Literal["none", "auto", "required"] | _FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: _TextSettings = _TextSettings()
    reasoning: _ReasoningSettings | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    include: list[_Include] = []
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_options: _CacheOptions | None = None  # read only to refuse a call without an answer


# Reading


def read(body: bytes) -> ChatRequest:
    """Read a request; ``BadInput`` names what has no form in other dialects."""
    fields = {name: value for name, value in wire.fields(body).items() if value is not None}
    for name, (neutral, advice) in _REFUSED.items():
        if name in fields and fields.pop(name) not in neutral:
            raise BadInput(name, advice)
    asked = _convert({name: value for name, value in fields.items() if name not in HARMLESS}, _Request, "")
    choice, logprobs = asked.tool_choice, "message.output_text.logprobs" in asked.include
    return ChatRequest(
        messages=_read_input(asked),
        max_tokens=asked.max_output_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        logprobs=logprobs,
        top_logprobs=asked.top_logprobs if logprobs else None,  # alone it gives nothing
        tools=[_read_tool(tool) for tool in asked.tools],
        tool_choice=_read_choice(choice) if choice is not None else None,
        parallel_tool_calls=asked.parallel_tool_calls,
        answer_format=_read_format(asked.text),
        reasoning=_read_effort(asked.reasoning) if asked.reasoning else None,
        verbosity=asked.text.verbosity,
        user=asked.safety_identifier or asked.user,
        service_tier=asked.service_tier,
    )


def _convert(value: Any, kind: type[_T], where: str) -> _T:
    """Return a value as a struct; what it has beyond that says that it cannot be translated."""
    try:
        return wire.convert(value, kind, where)
    except BadInput as error:
        if error.why.startswith("Object contains unknown field"):
            raise BadInput(error.where, _UNTRANSLATED) from None
        if error.where.endswith("type") and error.why.startswith("Invalid value"):
            raise BadInput(error.where, error.why.removeprefix("Invalid value ") + " " + _UNTRANSLATED) from None
        raise


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _read_input(asked: _Request) -> list[Message]:
    """Return the turns: what the model gave in a row is one, and so are the results of tools in a row."""
    turns: list[Message] = []
    if asked.instructions:
        turns.append(Message(role="system", blocks=[Text(text=asked.instructions)]))
    if isinstance(asked.input, str):
        return [*turns, Message(role="user", blocks=[Text(text=asked.input)])]
    if not asked.input:
        raise BadInput("input", "is empty; send the conversation in it")
    plain = [_plain_item(item, f"input[{index}]") for index, item in enumerate(asked.input)]
    for index, item in enumerate(_convert(plain, list[_Item], "input")):
        role, blocks = _read_item(item, f"input[{index}]")
        if turns and turns[-1].role == role and role in ("assistant", "tool"):
            turns[-1] = Message(role=role, blocks=[*turns[-1].blocks, *blocks])
        elif blocks or role != "assistant":
            turns.append(Message(role=role, blocks=blocks))
    return turns


def _plain_item(item: Any, where: str) -> Any:
    """Return an item without nulls and with its type, which messages and references may leave out."""
    if not isinstance(item, dict):
        return item
    plain = _without_nulls(item)
    if plain.get("type") == "item_reference" or plain.keys() == {"id"}:
        raise BadInput(where, f"refers to a stored item: {_WHOLE}")
    return {"type": "message"} | plain if "role" in plain else plain


def _read_item(item: _Item, where: str) -> tuple[Role, list[Block]]:
    match item:
        case _MessageItem():
            return item.role, _read_content(item, where)
        case _CallItem():
            return "assistant", [ToolCall(id=item.call_id, name=item.name, arguments=item.arguments)]
        case _ReasoningItem():
            return "assistant", _read_reasoning(item)
        case _OutputItem():
            return "tool", [_read_output(item, where)]


def _read_content(item: _MessageItem, where: str) -> list[Block]:
    if isinstance(item.content, str):
        return [Text(text=item.content)]
    blocks: list[Block] = []
    for index, part in enumerate(item.content):
        place = f"{where}.content[{index}]"
        if isinstance(part, _RefusalPart):
            if item.role != "assistant":
                raise BadInput(f"{place}.type", f"a refusal is the assistant's, not the {item.role}'s")
            blocks.append(Refusal(text=part.refusal))
        else:
            blocks.append(_read_part(part, place))
    return blocks


def _read_part(part: _InputText | _OutputText | _InputImage | _InputFile, where: str) -> Text | Image | File:
    match part:
        case _OutputText():
            return Text(text=part.text)
        case _InputText():
            return Text(text=part.text, cache=_read_mark(part.prompt_cache_breakpoint))
        case _InputImage():
            return _read_image(part, where)
        case _InputFile():
            return _read_file(part, where)


def _read_mark(mark: _Breakpoint | None) -> CacheMark | None:
    """Return a cache mark; of the two lifetimes, 30m and 12h, the nearest that another provider has."""
    return CacheMark(ttl="1h" if mark.ttl == "12h" else None) if mark else None


def _read_image(part: _InputImage, where: str) -> Image:
    if (part.image_url is None) == (part.file_id is None):
        raise BadInput(where, "an image has either `image_url` or `file_id`")
    detail = None if part.detail == "auto" else part.detail
    cache = _read_mark(part.prompt_cache_breakpoint)
    media_type, data = _read_data(part.image_url or "", f"{where}.image_url")
    if data is not None:
        return Image(data=data, media_type=media_type, detail=detail, cache=cache)
    return Image(url=part.image_url, file_id=part.file_id, detail=detail, cache=cache)


def _read_file(part: _InputFile, where: str) -> File:
    if sum(given is not None for given in (part.file_data, part.file_url, part.file_id)) != 1:
        raise BadInput(where, "a file has one of `file_data`, `file_url` and `file_id`")
    cache = _read_mark(part.prompt_cache_breakpoint)
    media_type, data = _read_data(part.file_data or "", f"{where}.file_data")
    if part.file_data is not None and data is None:
        data = part.file_data
    about: dict[str, Any] = {"media_type": media_type, "name": part.filename, "cache": cache}
    if media_type == "text/plain" and data is not None:
        return File(text=_plain_text(data, f"{where}.file_data"), **about)
    return File(data=data, url=part.file_url, file_id=part.file_id, **about)


def _plain_text(data: str, where: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise BadInput(where, "not the base64 of UTF-8 text, as its media type says") from None


def _read_data(url: str, where: str) -> tuple[str | None, str | None]:
    """Return media type and base64 of a ``data:`` address, ``(None, None)`` for any other."""
    if not url.startswith("data:"):
        return None, None
    header, comma, data = url.removeprefix("data:").partition(",")
    if not comma or not header.endswith(";base64"):
        raise BadInput(where, "a data address must be data:TYPE;base64,DATA")
    return header.removesuffix(";base64") or None, data


def _read_reasoning(item: _ReasoningItem) -> list[Block]:
    """Return the reasoning; none for a bare id, which stands for what OpenAI has stored."""
    texts = [part.text for part in item.summary] + [part.text for part in item.content]
    text = PARAGRAPH.join(text for text in texts if text)
    signature, redacted = seals.canonical(item.encrypted_content, text)
    if not text and signature is None and redacted is None:
        return []
    return [Thinking(text=text, signature=signature, redacted=redacted, id=item.id)]


def _read_output(item: _OutputItem, where: str) -> ToolResult:
    content: list[Text | Image | File]
    if isinstance(item.output, str):
        content = [Text(text=item.output)] if item.output else []
    else:
        content = [_read_part(part, f"{where}.output[{index}]") for index, part in enumerate(item.output)]
    return ToolResult(call_id=item.call_id, content=content)


def _read_tool(tool: _FunctionTool) -> Tool:
    return Tool(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)


def _read_choice(choice: Literal["none", "auto", "required"] | _FunctionChoice) -> ToolChoice:
    return ToolChoice(mode=choice) if isinstance(choice, str) else ToolChoice(mode="one", name=choice.name)


def _read_format(text: _TextSettings) -> AnswerFormat | None:
    form = text.format
    if isinstance(form, _SchemaFormat):
        return AnswerFormat(schema=form.schema, name=form.name, description=form.description, strict=form.strict)
    return AnswerFormat() if isinstance(form, _ObjectFormat) else None


def _read_effort(asked: _ReasoningSettings) -> Reasoning:
    off = asked.effort == "none"
    return Reasoning(effort=None if off else asked.effort, summary=asked.summary or asked.generate_summary, off=off)
