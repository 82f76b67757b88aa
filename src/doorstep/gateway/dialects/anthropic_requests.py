"""Requests of Anthropic's messages, to and from canonical ones.

What has no canonical form is refused by its name: the tools that Anthropic runs itself and their results, citations,
containers. What needs a rule when it goes from another dialect to this one:

- ``max_tokens`` must be said here. Where the client did not, it is ``DEFAULT_MAX_TOKENS``, on top of a thinking budget,
  which it includes.
- System and developer messages that lead become ``system``; later ones stay in their place, as role ``system``.
- Neighbours of one role become one message, and the results of tools come first in it; a text without a character,
  which Anthropic refuses, is left out.
- Reasoning that OpenAI sealed is left out, as Anthropic lets one do with reasoning of earlier turns: it refuses seals
  that it did not make, and a conversation may change its provider.
- A refusal in the history is the model's words and goes as text.
- A tool without parameters takes an empty object. The name of an answer's schema is a label and is left out.
- The id of a reasoning item, which the Responses API wants back, has no field here. An answer carries it in front of
  the signature, as ``doorstep.item:ID:SIGNATURE``, and the client's next request brings it back; a provider of this
  dialect, which knows no such ids, gets the signature alone.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Annotated, Any, Literal, TypeVar

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
from doorstep.gateway.dialects import openai_responses_seals as seals
from doorstep.gateway.dialects import wire
from doorstep.gateway.dialects.base import Head

DEFAULT_MAX_TOKENS = 8192

_TIERS = {"auto": "auto", "standard_only": "default"}  # ours: as OpenAI spells them
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_ITEM = "doorstep.item:"
_UNSAYABLE = "cannot be said to a provider of another dialect; leave it out, or use a model of Anthropic"

_T = TypeVar("_T", bound="_Prompt")


# The wire format of a request. Fields of type None are known, and have no form in other dialects.


_Nothing = Annotated[list[Any], msgspec.Meta(max_length=0)]


class _Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class _CacheControl(_Wire, frozen=True):
    type: Literal["ephemeral"]
    ttl: str | None = None


class _Text(_Wire, frozen=True, tag="text"):
    text: str
    cache_control: _CacheControl | None = None
    citations: _Nothing | None = None


class _Base64(_Wire, frozen=True, tag="base64"):
    media_type: str
    data: str


class _Url(_Wire, frozen=True, tag="url"):
    url: str


class _FileId(_Wire, frozen=True, tag="file"):
    file_id: str


class _Plain(_Wire, frozen=True, tag="text"):
    media_type: Literal["text/plain"]
    data: str


class _Content(_Wire, frozen=True, tag="content"):
    content: str | list[_Text]


class _Image(_Wire, frozen=True, tag="image"):
    source: _Base64 | _Url | _FileId
    cache_control: _CacheControl | None = None
    transformations: None = None


class _Citations(_Wire, frozen=True):
    enabled: bool = False


class _Document(_Wire, frozen=True, tag="document"):
    source: _Base64 | _Url | _FileId | _Plain | _Content
    title: str | None = None
    context: None = None
    citations: _Citations | None = None
    cache_control: _CacheControl | None = None


class _Direct(_Wire, frozen=True):
    type: Literal["direct"]


class _ToolUse(_Wire, frozen=True, tag="tool_use"):
    id: str
    name: str
    input: msgspec.Raw
    cache_control: _CacheControl | None = None
    caller: _Direct | None = None
    toolset_name: None = None


class _ToolResult(_Wire, frozen=True, tag="tool_result"):
    tool_use_id: str
    content: str | list[_Text | _Image | _Document] | None = None
    is_error: bool | None = None
    cache_control: _CacheControl | None = None
    toolset_name: None = None


class _Thinking(_Wire, frozen=True, tag="thinking"):
    thinking: str
    signature: str | None = None


class _Redacted(_Wire, frozen=True, tag="redacted_thinking"):
    data: str


_WireBlock = _Text | _Image | _Document | _ToolUse | _ToolResult | _Thinking | _Redacted


class _Message(_Wire, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[_WireBlock]


class _Tool(_Wire, frozen=True):
    name: str
    input_schema: dict[str, Any]
    type: str | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: _CacheControl | None = None
    eager_input_streaming: bool | None = None  # how finely the arguments are streamed: harmless
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: bool | None = None
    input_examples: _Nothing | None = None


class _ToolChoice(_Wire, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _ThinkingConfig(_Wire, frozen=True):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class _Format(_Wire, frozen=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _OutputConfig(_Wire, frozen=True):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(_Wire, frozen=True):
    user_id: str | None = None


class _Diagnostics(msgspec.Struct, frozen=True):
    """Asks why the provider's cache was missed; changes nothing in what is sampled."""


class _All(_Wire, frozen=True):
    type: Literal["all"]


class _KeepThinking(_Wire, frozen=True):
    """Takes nothing out of the conversation; coding agents send it so that the thinking stays."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"] | _All


class _Edits(_Wire, frozen=True):
    edits: list[_KeepThinking] = []


class _Prompt(_Wire, frozen=True):
    """What a request for counting tokens holds too."""

    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    system: str | list[_Text] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _ThinkingConfig | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None  # as it was called while it was in beta
    cache_control: _CacheControl | None = None
    context_management: _Edits | None = None
    speed: Literal["standard"] | None = None


class _Request(_Prompt, frozen=True, kw_only=True):
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    metadata: _Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    diagnostics: _Diagnostics | None = None
    container: None = None
    inference_geo: None = None
    user_profile_id: None = None
    mcp_servers: _Nothing | None = None


_prompts = msgspec.json.Decoder(_Prompt)
_requests = msgspec.json.Decoder(_Request)
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


# Reading requests


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
    asked = _decode(_requests, body)
    return msgspec.structs.replace(
        _prompt(asked),
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        stop=asked.stop_sequences or [],
        user=asked.metadata and asked.metadata.user_id,
        service_tier=asked.service_tier and _TIERS[asked.service_tier],
    )


def read_prompt(body: bytes) -> ChatRequest:
    """Read a request of which only the tokens are to be counted, which says nothing of sampling."""
    return _prompt(_decode(_prompts, body))


def _prompt(asked: _Prompt) -> ChatRequest:
    choice, config = asked.tool_choice, asked.output_config or _OutputConfig()
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


def _read_system(system: str | list[_Text] | None) -> Iterator[Message]:
    if system:
        blocks = [_Text(text=system)] if isinstance(system, str) else system
        yield Message(role="system", blocks=[_read_text(block) for block in blocks])


_HELD: dict[str, tuple[type[Block], ...]] = {
    "user": (Text, Image, File, ToolResult),
    "assistant": (Text, Thinking, ToolCall),
    "system": (Text,),
}


def _read_messages(found: list[_Message]) -> Iterator[Message]:
    for place, message in enumerate(found):
        where = f"messages[{place}].content"
        given = [_Text(text=message.content)] if isinstance(message.content, str) else message.content
        blocks = [_read_block(block, f"{where}[{number}]") for number, block in enumerate(given)]
        for number, block in enumerate(blocks):
            if not isinstance(block, _HELD[message.role]):
                kind = given[number].__struct_config__.tag
                raise BadInput(f"{where}[{number}].type", f"a message of role {message.role} holds no {kind}")
        if not blocks:
            yield Message(role=message.role, blocks=[])
        for is_result, group in groupby(blocks, lambda block: isinstance(block, ToolResult)):
            yield Message(role="tool" if is_result else message.role, blocks=list(group))


def _read_block(block: _WireBlock, where: str) -> Block:
    if isinstance(block, _Text):
        return _read_text(block)
    if isinstance(block, _Image):
        return _read_image(block)
    if isinstance(block, _Document):
        return _read_document(block, where)
    if isinstance(block, _ToolUse):
        arguments = bytes(block.input)
        if not arguments.startswith(b"{"):
            raise BadInput(f"{where}.input", "must be an object")
        return ToolCall(id=block.id, name=block.name, arguments=arguments.decode(), cache=_mark(block.cache_control))
    if isinstance(block, _ToolResult):
        return _read_result(block, where)
    if isinstance(block, _Redacted):
        item, data = without_item(block.data)
        return Thinking(redacted=data, id=item)
    item, signature = without_item(block.signature or "")
    return Thinking(text=block.thinking, signature=signature, id=item)


def _read_text(block: _Text) -> Text:
    return Text(text=block.text, cache=_mark(block.cache_control))


def _read_image(block: _Image) -> Image:
    source, cache = block.source, _mark(block.cache_control)
    if isinstance(source, _Base64):
        return Image(data=source.data, media_type=source.media_type, cache=cache)
    if isinstance(source, _Url):
        return Image(url=source.url, cache=cache)
    return Image(file_id=source.file_id, cache=cache)


def _read_document(block: _Document, where: str) -> File:
    if block.citations and block.citations.enabled:
        raise BadInput(f"{where}.citations", _UNSAYABLE)
    source, name, cache = block.source, block.title, _mark(block.cache_control)
    if isinstance(source, _Base64):
        return File(data=source.data, media_type=source.media_type, name=name, cache=cache)
    if isinstance(source, _Url):
        return File(url=source.url, media_type="application/pdf", name=name, cache=cache)
    if isinstance(source, _FileId):
        return File(file_id=source.file_id, name=name, cache=cache)
    if isinstance(source, _Plain):
        return File(text=source.data, media_type=source.media_type, name=name, cache=cache)
    # Where nothing is cited, its division into parts has no meaning.
    parts = source.content if isinstance(source.content, str) else "\n".join(part.text for part in source.content)
    return File(text=parts, media_type="text/plain", name=name, cache=cache)


def _read_result(block: _ToolResult, where: str) -> ToolResult:
    given = [_Text(text=block.content)] if isinstance(block.content, str) else block.content or []
    content: list[Text | Image | File] = []
    for number, part in enumerate(given):
        if isinstance(part, _Text):
            content.append(_read_text(part))
        elif isinstance(part, _Image):
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
        tool = wire.convert(given, _Tool, where)
    if tool.defer_loading:
        raise BadInput(f"{where}.defer_loading", _UNSAYABLE)
    return Tool(
        name=tool.name,
        description=tool.description,
        parameters=tool.input_schema,
        strict=tool.strict,
        cache=_mark(tool.cache_control),
    )


def _read_choice(choice: _ToolChoice) -> ToolChoice:
    if choice.type == "tool":
        if choice.name is None:
            raise BadInput("tool_choice.name", "says which tool to use, where type is tool")
        return ToolChoice(mode="one", name=choice.name)
    return ToolChoice(mode="required" if choice.type == "any" else choice.type)


def _read_reasoning(thinking: _ThinkingConfig | None, effort: str | None) -> Reasoning | None:
    if thinking is None:
        return None if effort is None else Reasoning(effort=effort)
    if thinking.type == "enabled" and thinking.budget_tokens is None:
        raise BadInput("thinking.budget_tokens", "says for how many tokens, where type is enabled")
    # "omitted" is what every other dialect does where it is asked for no summary.
    summary = "auto" if thinking.display == "summarized" else None
    return Reasoning(effort=effort, budget=thinking.budget_tokens, summary=summary, off=thinking.type == "disabled")


def _mark(control: _CacheControl | None) -> CacheMark | None:
    return None if control is None else CacheMark(ttl=control.ttl)


def _mark_last(found: list[Message], control: _CacheControl) -> list[Message]:
    """Mark the last block that can be cached, which is what ``cache_control`` of a whole request stands for."""
    for place in reversed(range(len(found))):
        blocks = list(found[place].blocks)
        for number in reversed(range(len(blocks))):
            block = blocks[number]
            if isinstance(block, Text | Image | File | ToolCall | ToolResult):
                blocks[number] = msgspec.structs.replace(block, cache=block.cache or _mark(control))
                return [*found[:place], msgspec.structs.replace(found[place], blocks=blocks), *found[place + 1 :]]
    return found


# Writing requests


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
        "metadata": None if request.user is None else _Metadata(user_id=request.user),
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
        ("seed", request.seed is not None, "Anthropic's models take no seed"),
        ("presence_penalty", request.presence_penalty, "Anthropic's models take no penalties"),
        ("frequency_penalty", request.frequency_penalty, "Anthropic's models take no penalties"),
        ("logit_bias", request.logit_bias, "Anthropic's models take no bias on tokens"),
        ("verbosity", request.verbosity not in (None, "medium"), "Anthropic's models have no such setting"),
    )
    for where, asked, why in refused:
        if asked:
            raise BadInput(where, f"{why}; leave it out or use another model")


def _write_messages(found: list[Message]) -> tuple[list[_WireBlock], list[_Message]]:
    system: list[_WireBlock] = []
    turns: list[tuple[Literal["user", "assistant", "system"], list[_WireBlock]]] = []
    for place, message in enumerate(found):
        where = f"messages[{place}]"
        if message.name is not None:
            raise BadInput(f"{where}.name", "Anthropic's models know no names of participants; leave it out")
        written = [
            _write_block(block, f"{where}.content[{i}]")
            for i, block in enumerate(message.blocks)
            if not (isinstance(block, Thinking) and seals.for_provider(block))
        ]
        blocks = [block for block in written if not (isinstance(block, _Text) and not block.text)]
        role = _write_role(message.role)
        if role == "system" and not all(isinstance(block, _Text) for block in blocks):
            raise BadInput(f"{where}.content", "Anthropic's models take only text from the system")
        if role == "system" and not turns:
            system += blocks
        elif blocks and turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        elif blocks:
            turns.append((role, blocks))
    return system, [_Message(role=role, content=_results_first(blocks)) for role, blocks in turns]


def _write_role(role: Role) -> Literal["user", "assistant", "system"]:
    if role == "developer":
        return "system"
    return "user" if role == "tool" else role


def _results_first(blocks: list[_WireBlock]) -> list[_WireBlock]:
    """Anthropic refuses a message in which anything stands before the results of the tools that it answers with."""
    return sorted(blocks, key=lambda block: not isinstance(block, _ToolResult))


def _write_block(block: Block, where: str) -> _WireBlock:
    if isinstance(block, Text):
        return _write_text(block)
    if isinstance(block, Image):
        return _write_image(block, where)
    if isinstance(block, File):
        return _write_file(block, where)
    if isinstance(block, ToolCall):
        control = _control(block.cache)
        return _ToolUse(id=block.id, name=block.name, input=_write_input(block, where), cache_control=control)
    if isinstance(block, ToolResult):
        return _write_result(block, where)
    if isinstance(block, Refusal):
        return _Text(text=block.text)
    if isinstance(block, Audio):
        raise BadInput(where, "Anthropic's models take no audio; send its transcript")
    if block.redacted is not None:
        return _Redacted(data=block.redacted)
    # Without a signature it is for the provider to say whether it takes it: Anthropic does not, others here do.
    return _Thinking(thinking=block.text, signature=block.signature or "")


def _write_text(block: Text) -> _Text:
    return _Text(text=block.text, cache_control=_control(block.cache))


def _write_image(block: Image, where: str) -> _Image:
    if block.detail == "low":
        raise BadInput(where, "Anthropic's models see pictures in full detail; leave detail out or make it auto")
    source: _Base64 | _Url | _FileId
    if block.data is not None:
        if block.media_type is None:
            raise BadInput(where, "the picture's media type must be said, such as image/png")
        source = _Base64(media_type=block.media_type, data=block.data)
    elif block.url is not None:
        source = _Url(url=block.url)
    else:
        source = _FileId(file_id=block.file_id or "")
    return _Image(source=source, cache_control=_control(block.cache))


def _write_file(block: File, where: str) -> _Document:
    source: _Base64 | _Url | _FileId | _Plain
    if block.text is not None:
        source = _Plain(media_type="text/plain", data=block.text)
    elif block.data is not None:
        source = _write_data(block.data, block.media_type, where)
    elif block.url is not None:
        source = _Url(url=block.url)
    else:
        source = _FileId(file_id=block.file_id or "")
    return _Document(source=source, title=block.name, cache_control=_control(block.cache))


def _write_data(data: str, media_type: str | None, where: str) -> _Base64 | _Plain:
    if media_type == "application/pdf":
        return _Base64(media_type=media_type, data=data)
    if media_type is None or not media_type.startswith("text/"):
        raise BadInput(where, f"Anthropic's models read PDF and text, not {media_type or 'a file of unknown type'}")
    try:
        return _Plain(media_type="text/plain", data=base64.b64decode(data, validate=True).decode())
    except (binascii.Error, UnicodeDecodeError):
        raise BadInput(where, "must be base64 of text in UTF-8") from None


def _write_result(block: ToolResult, where: str) -> _ToolResult:
    content: list[_Text | _Image | _Document] = []
    for number, part in enumerate(block.content):
        if isinstance(part, Text):
            content.append(_write_text(part))
        elif isinstance(part, Image):
            content.append(_write_image(part, f"{where}.content[{number}]"))
        else:
            content.append(_write_file(part, f"{where}.content[{number}]"))
    return _ToolResult(
        tool_use_id=block.call_id,
        content=content or None,
        is_error=block.is_error or None,
        cache_control=_control(block.cache),
    )


def _write_input(block: ToolCall, where: str) -> msgspec.Raw:
    text = block.arguments or "{}"
    try:
        _objects.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise BadInput(f"{where}.arguments", "Anthropic's models take only a JSON object back") from None
    return msgspec.Raw(text.encode())


def _write_tool(tool: Tool) -> _Tool:
    return _Tool(
        name=tool.name,
        description=tool.description,
        input_schema={"type": "object"} | (tool.parameters or {"properties": {}}),
        strict=tool.strict,
        cache_control=_control(tool.cache),
    )


def _write_choice(request: ChatRequest) -> _ToolChoice | None:
    choice, parallel = request.tool_choice, request.parallel_tool_calls
    if not request.tools and (choice is None or choice.mode in ("auto", "none")):
        return None  # Anthropic refuses a choice among no tools
    if choice is not None and choice.mode == "none":
        return _ToolChoice(type="none")
    if choice is None and parallel is None:
        return None
    kind: Literal["auto", "any", "tool"] = "auto"
    if choice is not None and choice.mode != "auto":
        kind = "any" if choice.mode == "required" else "tool"
    no_parallel = None if parallel is None else not parallel
    return _ToolChoice(type=kind, name=None if choice is None else choice.name, disable_parallel_tool_use=no_parallel)


def _write_reasoning(reasoning: Reasoning | None) -> _ThinkingConfig | None:
    if reasoning is None:
        return None
    if reasoning.off or reasoning.effort == "none":
        return _ThinkingConfig(type="disabled")
    display: Literal["summarized"] | None = None if reasoning.summary is None else "summarized"
    if reasoning.budget is not None:
        return _ThinkingConfig(type="enabled", budget_tokens=reasoning.budget, display=display)
    return _ThinkingConfig(type="adaptive", display=display)


def _write_config(request: ChatRequest) -> _OutputConfig | None:
    effort = request.reasoning.effort if request.reasoning else None
    if effort == "none":
        effort = None
    if effort is not None and effort not in _EFFORTS:
        raise BadInput("reasoning_effort", f"Anthropic's models take {', '.join(_EFFORTS)}, not {effort}")
    asked, form = request.answer_format, None
    if asked is not None:
        if asked.schema is None:
            raise BadInput("response_format", "Anthropic's models write JSON to a schema; give one as json_schema")
        about = {} if asked.description is None else {"description": asked.description}
        form = _Format(type="json_schema", schema=about | asked.schema)
    return None if effort is None and form is None else _OutputConfig(effort=effort, format=form)


def _write_tier(tier: str) -> str:
    for theirs, ours in _TIERS.items():
        if ours == tier:
            return theirs
    raise BadInput("service_tier", f"Anthropic's service has {' and '.join(_TIERS.values())}, not {tier}")


def _control(mark: CacheMark | None) -> _CacheControl | None:
    return None if mark is None else _CacheControl(type="ephemeral", ttl=mark.ttl)


def with_item(item: str | None, opaque: str) -> str:
    """Return a signature, or encrypted reasoning, that also carries the id of the reasoning item."""
    return opaque if item is None else f"{_ITEM}{item}:{opaque}"


def without_item(opaque: str) -> tuple[str | None, str | None]:
    """Return the id of the reasoning item and what else was said."""
    if not opaque.startswith(_ITEM):
        return None, opaque or None
    item, _, rest = opaque[len(_ITEM) :].partition(":")
    return item, rest or None
