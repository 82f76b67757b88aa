"""A chat call in no dialect: the canonical block model of what is asked of a model, and the events of its answer.

Every dialect reads its wire format into these values and writes it out of them, so that n dialects need n readers and
n writers. A reader gives everything that these values can hold and raises ``BadInput``, naming the field, for what they
cannot; a writer raises it for what its wire format cannot say. Nothing is dropped on the way.
"""

from typing import Any, Literal

import msgspec


class CacheMark(msgspec.Struct, frozen=True):
    """The prompt up to here may be cached by the provider. ``ttl`` as Anthropic spells it, ``5m`` or ``1h``."""

    ttl: str | None = None


# Blocks of a message


class Text(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """Words."""

    text: str
    cache: CacheMark | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True, tag="image"):
    """A picture: one of an address, base64 ``data`` with its ``media_type``, or the provider's id of a file."""

    url: str | None = None
    data: str | None = None
    media_type: str | None = None
    file_id: str | None = None
    detail: str | None = None  # OpenAI: low, high, auto
    cache: CacheMark | None = None


class Audio(msgspec.Struct, frozen=True, kw_only=True, tag="audio"):
    """Sound: base64 ``data`` in ``format``, such as ``wav``."""

    data: str
    format: str


class File(msgspec.Struct, frozen=True, kw_only=True, tag="file"):
    """A document: one of base64 ``data`` with its ``media_type``, plain ``text``, an address, or a file's id."""

    data: str | None = None
    text: str | None = None
    url: str | None = None
    file_id: str | None = None
    media_type: str | None = None
    name: str | None = None
    cache: CacheMark | None = None


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, tag="tool_call"):
    """The model asks for a tool. ``arguments`` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str
    cache: CacheMark | None = None


class ToolResult(msgspec.Struct, frozen=True, kw_only=True, tag="tool_result"):
    """What a tool gave."""

    call_id: str
    content: list[Text | Image | File]
    is_error: bool = False
    cache: CacheMark | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True, tag="thinking"):
    """The model's reasoning. ``signature`` and ``redacted`` are opaque: they go back to the provider unchanged."""

    text: str = ""
    signature: str | None = None
    redacted: str | None = None  # encrypted reasoning, without text
    id: str | None = None  # of a reasoning item, where the provider gives one


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    """The model says why it does not answer."""

    text: str


Block = Text | Image | Audio | File | ToolCall | ToolResult | Thinking | Refusal
Role = Literal["system", "developer", "user", "assistant", "tool"]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. Role ``tool`` holds ``ToolResult`` blocks and nothing else; no other role holds them."""

    role: Role
    blocks: list[Block]
    name: str | None = None


# The rest of a request


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may ask for; ``parameters`` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache: CacheMark | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model is to use tools; ``one`` is the tool called ``name``."""

    mode: Literal["auto", "none", "required", "one"]
    name: str | None = None


class AnswerFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is to be JSON; of any shape where ``schema`` is None."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """How much the model is to think: ``effort`` in words, or ``budget`` in tokens. ``summary``: show it, how long."""

    effort: str | None = None
    budget: int | None = None
    summary: str | None = None
    off: bool = False


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. ``None`` is not said: the provider's default holds."""

    messages: list[Message]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: list[str] = []
    seed: int | None = None
    n: int = 1
    logprobs: bool = False
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Tool] = []
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    answer_format: AnswerFormat | None = None
    reasoning: Reasoning | None = None
    verbosity: str | None = None
    user: str | None = None  # the caller's end user, for the provider's abuse checks
    service_tier: str | None = None


# Events of an answer, in order. ``index`` is the answer's, 0 to n - 1.


class SampledText(msgspec.Struct, frozen=True):
    """A sampled token as text and bytes; ``top`` are the likeliest tokens there, where they were asked for."""

    text: str
    bytes: bytes
    logprob: float
    top: list["SampledText"] = []


class Begin(msgspec.Struct, frozen=True):
    """The provider has begun: its own id of the answer, and the model that it says it is."""

    id: str | None = None
    model: str | None = None


class Delta(msgspec.Struct, frozen=True):
    """More text; ``tokens`` only where log-probabilities were asked for."""

    index: int
    text: str
    tokens: list[SampledText] = []


class ThinkingDelta(msgspec.Struct, frozen=True):
    """More reasoning. ``signature`` comes last and completes the block; ``redacted`` is a block of its own."""

    index: int
    text: str = ""
    signature: str | None = None
    redacted: str | None = None
    id: str | None = None


class RefusalDelta(msgspec.Struct, frozen=True):
    """More of a refusal."""

    index: int
    text: str


class ToolCallBegin(msgspec.Struct, frozen=True):
    """A tool call begins; ``call`` counts the tool calls of this answer from 0."""

    index: int
    call: int
    id: str
    name: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """More of a tool call's arguments, JSON text."""

    index: int
    call: int
    arguments: str


Reason = Literal["stop", "length", "tool_calls", "content_filter", "refusal", "pause"]


class End(msgspec.Struct, frozen=True):
    """Answer ``index`` is complete. ``stop_sequence`` is the stop string that ended it, where that is known."""

    index: int
    reason: Reason
    stop_sequence: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens a call took; the last event. The input counts all of it, whether it was cached or not.

    A part that the provider does not tell is ``None``. ``units`` are what is not counted in tokens: ``images``,
    ``characters``, ``seconds``.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None  # of the input: read from the provider's cache
    cache_write_tokens: int | None = None  # of the input: written to it
    reasoning_tokens: int | None = None  # of the output
    input_audio_tokens: int | None = None  # of the input
    output_audio_tokens: int | None = None  # of the output
    units: dict[str, float] = {}


class Seen(msgspec.Struct):
    """What passed on the way and the client was not sent, filled in while the answer goes out."""

    usage: Usage = Usage()


Event = Begin | Delta | ThinkingDelta | RefusalDelta | ToolCallBegin | ToolCallDelta | End | Usage


# What our own engine adds


class Sampled(msgspec.Struct):
    """The exact ids of one answer, its end token included, with one log-probability each."""

    ids: list[int] = []
    logprobs: list[float] = []


class Trace(msgspec.Struct, kw_only=True):
    """The exact tokens of a call that our engine answers, filled in while it does."""

    prompt: list[int]
    samples: list[Sampled]
    policy: str  # tinker:// path of the adapter, or the digest of the base
    tokenizer_digest: str
    cpu_seconds: float | None = None  # used by this process and the engine for this call
