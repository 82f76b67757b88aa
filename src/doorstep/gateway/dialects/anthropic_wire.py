"""The wire format of requests of Anthropic's messages, as types, and what both ways of it need.

Fields of type None are known, and have no form in other dialects. The id of a reasoning item, which the Responses API
wants back, has no field here: it rides in front of the signature, as ``doorstep.item:ID:SIGNATURE``.
"""

from typing import Annotated, Any, Literal

import msgspec

TIERS = {"auto": "auto", "standard_only": "default"}  # ours: as OpenAI spells them
_ITEM = "doorstep.item:"

Nothing = Annotated[list[Any], msgspec.Meta(max_length=0)]


class Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a request; a field that is not here is refused."""


class CacheControl(Wire, frozen=True):
    """A mark: the prompt up to here may be cached."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class Text(Wire, frozen=True, tag="text"):
    """Words."""

    text: str
    cache_control: CacheControl | None = None
    citations: Nothing | None = None


class Base64(Wire, frozen=True, tag="base64"):
    """Bytes in the request itself."""

    media_type: str
    data: str


class Url(Wire, frozen=True, tag="url"):
    """Bytes at an address."""

    url: str


class FileId(Wire, frozen=True, tag="file"):
    """Bytes that the provider has."""

    file_id: str


class Plain(Wire, frozen=True, tag="text"):
    """A document's text."""

    media_type: Literal["text/plain"]
    data: str


class Content(Wire, frozen=True, tag="content"):
    """A document made of blocks."""

    content: str | list[Text]


class Image(Wire, frozen=True, tag="image"):
    """A picture."""

    source: Base64 | Url | FileId
    cache_control: CacheControl | None = None
    transformations: None = None


class Citations(Wire, frozen=True):
    """Whether the model is to cite a document."""

    enabled: bool = False


class Document(Wire, frozen=True, tag="document"):
    """A document."""

    source: Base64 | Url | FileId | Plain | Content
    title: str | None = None
    context: None = None
    citations: Citations | None = None
    cache_control: CacheControl | None = None


class Direct(Wire, frozen=True):
    """Who called a tool: the model itself."""

    type: Literal["direct"]


class ToolUse(Wire, frozen=True, tag="tool_use"):
    """The model asks for a tool."""

    id: str
    name: str
    input: msgspec.Raw
    cache_control: CacheControl | None = None
    caller: Direct | None = None
    toolset_name: None = None


class ToolResult(Wire, frozen=True, tag="tool_result"):
    """What a tool gave."""

    tool_use_id: str
    content: str | list[Text | Image | Document] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: None = None


class Thinking(Wire, frozen=True, tag="thinking"):
    """Reasoning, with the provider's signature."""

    thinking: str
    signature: str | None = None


class Redacted(Wire, frozen=True, tag="redacted_thinking"):
    """Reasoning that only the provider can read."""

    data: str


WireBlock = Text | Image | Document | ToolUse | ToolResult | Thinking | Redacted


class Message(Wire, frozen=True):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[WireBlock]


class Tool(Wire, frozen=True):
    """A tool of the client's own."""

    name: str
    input_schema: dict[str, Any]
    type: str | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None  # how finely the arguments are streamed: harmless
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: bool | None = None
    input_examples: Nothing | None = None


class ToolChoice(Wire, frozen=True):
    """Whether tools are to be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Wire, frozen=True):
    """How much the model is to think."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class Format(Wire, frozen=True):
    """The answer is to be JSON of this shape."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Wire, frozen=True):
    """How the answer is to be."""

    effort: str | None = None
    format: Format | None = None


class Metadata(Wire, frozen=True):
    """Whose the request is."""

    user_id: str | None = None


class Diagnostics(msgspec.Struct, frozen=True):
    """Asks why the provider's cache was missed; changes nothing in what is sampled."""


class All(Wire, frozen=True):
    """All of them."""

    type: Literal["all"]


class KeepThinking(Wire, frozen=True):
    """Takes nothing out of the conversation; coding agents send it so that the thinking stays."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"] | All


class Edits(Wire, frozen=True):
    """Changes to the history; one that changes nothing is known."""

    edits: list[KeepThinking] = []


class Prompt(Wire, frozen=True):
    """What a request for counting tokens holds too."""

    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    system: str | list[Text] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None  # as it was called while it was in beta
    cache_control: CacheControl | None = None
    context_management: Edits | None = None
    speed: Literal["standard"] | None = None


class Request(Prompt, frozen=True, kw_only=True):
    """A request for an answer."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    diagnostics: Diagnostics | None = None
    container: None = None
    inference_geo: None = None
    user_profile_id: None = None
    mcp_servers: Nothing | None = None


prompts = msgspec.json.Decoder(Prompt)
requests = msgspec.json.Decoder(Request)
objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_item(item: str | None, opaque: str) -> str:
    """Return a signature, or encrypted reasoning, that also carries the id of the reasoning item."""
    return opaque if item is None else f"{_ITEM}{item}:{opaque}"


def without_item(opaque: str) -> tuple[str | None, str | None]:
    """Return the id of the reasoning item and what else was said."""
    if not opaque.startswith(_ITEM):
        return None, opaque or None
    item, _, rest = opaque[len(_ITEM) :].partition(":")
    return item, rest or None
