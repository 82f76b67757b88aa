"""Model calls in other systems' spans: OpenTelemetry's GenAI names of all ages, OpenLLMetry's, and OpenInference's.

A call is written down as a request and an answer of OpenAI's chat or embeddings format, so that it is read like any
other afterwards. They are not the bytes that went over the wire, which its record says as the gap ``from_span``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from doorstep import ids
from doorstep.gateway.capture import Capture
from doorstep.gateway.chat import Seen, Usage
from doorstep.gateway.dialects import openai_chat, openai_embeddings
from doorstep.gateway.telemetry import messages
from doorstep.gateway.telemetry.messages import first, text_of
from doorstep.gateway.telemetry.otlp import Attributes, Span
from doorstep.types import Mode, Run, RunStatus
from doorstep.value.prices import LOCAL

FROM_SPAN = "from_span"  # gap: the bodies were written from what a span says
NO_CONTENT = "no_content"  # gap: the span does not say what was asked
VARIANT = "external"  # of runs that another system did
CALLS = {"chat", "text_completion", "generate_content", "completion", "LLM"}
EMBEDDINGS = {"embeddings", "embedding", "EMBEDDING"}
AGENTS = {"invoke_agent", "invoke_workflow", "agent", "workflow", "AGENT", "CHAIN"}

# The names of one thing, the newest first.
_OPERATION = ("gen_ai.operation.name", "openinference.span.kind", "llm.request.type", "traceloop.span.kind")
_PROVIDER = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")
_REQUESTED = ("gen_ai.request.model", "llm.request.model_name")
_SERVED = ("gen_ai.response.model", "llm.response.model_name", "llm.model_name", "embedding.model_name")
_STREAM = ("gen_ai.request.stream", "gen_ai.is_streaming", "llm.is_streaming")
_PARAMETERS = ("llm.invocation_parameters", "embedding.invocation_parameters")  # a JSON object
_FIRST_PIECE = ("First Token Stream Event", "gen_ai.content.completion.chunk")  # events
_STATUS = re.compile(r"\b(?:code|status)\W{1,3}([45]\d\d)\b")  # as clients' exceptions say it
_CUSTOMER = ("user.id", "enduser.id")
_WORKFLOW = (
    "gen_ai.workflow.name", "gen_ai.agent.name", "traceloop.workflow.name", "traceloop.entity.name", "agent.name",
    "graph.node.id",
)  # fmt: skip
_SERVICE = ("openinference.project.name", "service.name")
_TOKENS = {
    "input_tokens": (
        "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt",
        "llm.usage.prompt_tokens",
    ),
    "output_tokens": (
        "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion",
        "llm.usage.completion_tokens",
    ),
    "cached_tokens": (
        "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens",
        "llm.token_count.prompt_details.cache_read",
    ),
    "cache_write_tokens": (
        "gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_creation_input_tokens",
        "llm.token_count.prompt_details.cache_write",
    ),
    "reasoning_tokens": (
        "gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens",
        "llm.token_count.completion_details.reasoning",
    ),
}  # fmt: skip
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop_sequences": "stop",
    "choice.count": "n",
}
_OWN_NAMES = {  # of providers, where Doorstep calls them otherwise
    "gcp.gemini": "google",
    "gcp.vertex_ai": "google",
    "gcp.gen_ai": "google",
    "gemini": "google",
    "vertex_ai": "google",
    "mistral_ai": "mistral",
    "mistralai": "mistral",
    "x_ai": "xai",
    LOCAL: "other",  # what is ours is priced by our own CPU time
}


def run_id_of(span: Span) -> str:
    """Return the run that a span's trace is."""
    return f"run_{span.trace_id}"


def is_call(span: Span) -> bool:
    """Tell whether a span is a model call."""
    said = span.attributes
    operation = _operation(span)
    if operation is None:
        return first(said, _PROVIDER) is not None and first(said, (*_REQUESTED, *_SERVED)) is not None
    return operation in CALLS or operation in EMBEDDINGS


def is_agent(span: Span) -> bool:
    """Tell whether a span is an agent's work, whether or not its model calls are known."""
    return _operation(span) in AGENTS


def capture_of(span: Span, key_id: str | None, customer: str | None) -> Capture:
    """Return the call that a span tells of."""
    said = {**span.attributes, **_details(span)}
    embeds = _operation(span) in EMBEDDINGS
    parameters = _parameters(said)
    served = text_of(first(said, _SERVED))
    requested = text_of(first(said, _REQUESTED)) or text_of(parameters.pop("model", None)) or served or "unknown"
    provider = (text_of(first(said, _PROVIDER)) or "other").lower()
    asked = messages.asked(span, said)
    status = _status(span)
    return Capture(
        call_id=f"call_{span.trace_id}{span.span_id}",
        run_id=run_id_of(span),
        dialect=openai_embeddings.NAME if embeds else openai_chat.NAME,
        requested_model=requested,
        served_model=served or requested,
        provider=_OWN_NAMES.get(provider, provider),
        adapter=None,
        stream=first(said, _STREAM) is True or parameters.get("stream") is True,
        started_us=span.start_ns // 1000,
        first_us=_first_us(span, said),
        ended_us=span.end_ns // 1000,
        status=status,
        error=span.error if span.error is None else span.error or str(said.get("error.type") or span.name),
        request=_embeddings_request(requested, messages.embedded(span, said))
        if embeds
        else _chat_request(requested, asked, messages.tools(said), parameters),
        response=b"" if status >= 400 else _embeddings_answer() if embeds else _chat_answer(span, said),
        seen=Seen(usage=_usage(said)),
        key_id=key_id,
        customer=_customer(said) or _customer(span.resource) or customer,
        upstream_id=text_of(said.get("gen_ai.response.id")),
        gaps=[FROM_SPAN, *([] if asked or embeds else [NO_CONTENT])],
    )


def run_of(root: Span, begun: Capture | None, customer: str | None) -> Run:
    """Return the run of a trace, from its root span and the first of its calls that is known."""
    said = root.attributes
    is_chat = begun is not None and begun.dialect == openai_chat.NAME
    asked = said.get("input.value") or (openai_chat.messages(begun.request) if begun and is_chat else None)
    return Run(
        run_id=run_id_of(root),
        workflow=text_of(first(said, _WORKFLOW)) or text_of(first(root.resource, _SERVICE)) or VARIANT,
        variant=VARIANT,
        mode=Mode.PROD,
        task_id=root.trace_id,
        task_digest=ids.digest(asked or root.trace_id),
        status=RunStatus.OK if root.error is None else RunStatus.AGENT_ERROR,
        started_us=root.start_ns // 1000,
        ended_us=root.end_ns // 1000,
        customer=_customer(said) or _customer(root.resource) or customer,
        output=messages.parsed(text_of(said.get("output.value"))),
        error=root.error,
        gaps=["no_token_ids", FROM_SPAN],
    )


# What a span says


def _operation(span: Span) -> str | None:
    return text_of(first(span.attributes, _OPERATION))


def _details(span: Span) -> dict[str, Any]:
    """Return what events say that newer conventions say as attributes of the span."""
    found: dict[str, Any] = {}
    for event in span.events:
        if event.name in (
            "gen_ai.client.inference.operation.details",
            "gen_ai.content.prompt",
            "gen_ai.content.completion",
        ):
            found |= event.attributes
    return found


def _parameters(said: Attributes) -> dict[str, Any]:
    """Return the settings of a call by OpenAI's names."""
    found = messages.parsed(first(said, _PARAMETERS))
    sampling = {own: said.get(f"gen_ai.request.{name}") for name, own in _SAMPLING.items()}
    return (found if isinstance(found, dict) else {}) | {
        name: value for name, value in sampling.items() if value is not None
    }


def _first_us(span: Span, said: Attributes) -> int | None:
    """Return when a stream's first piece came."""
    after_s = said.get("gen_ai.response.time_to_first_chunk")
    if isinstance(after_s, float):
        at_ns = span.start_ns + after_s * 1e9
    else:
        at_ns = next((event.at_ns for event in span.events if event.name in _FIRST_PIECE), 0)
    return round(at_ns / 1000) if span.start_ns <= at_ns <= span.end_ns else None


def _status(span: Span) -> int:
    if span.error is None:
        return 200
    for name in ("http.response.status_code", "error.type"):
        said = str(span.attributes.get(name))
        if re.fullmatch(r"[45]\d\d", said):
            return int(said)
    told = _STATUS.search(span.error)
    return int(told[1]) if told else 500


def _customer(said: Attributes) -> str | None:
    return text_of(first(said, _CUSTOMER))


def _usage(said: Attributes) -> Usage:
    return msgspec.convert({name: _count(said, names) for name, names in _TOKENS.items()}, Usage)


def _count(said: Attributes, names: Sequence[str]) -> int | None:
    value = first(said, names)
    return value if type(value) is int and 0 <= value < 2**40 else None


# The bodies


def _chat_request(
    model: str, asked: list[dict[str, Any]], tools: list[dict[str, Any]], parameters: Mapping[str, Any]
) -> bytes:
    request = {**parameters, "model": model, "messages": asked}
    return msgspec.json.encode(request | {"tools": tools} if tools else request)


def _chat_answer(span: Span, said: Attributes) -> bytes:
    reasons = said.get("gen_ai.response.finish_reasons")
    answers = list(messages.answers(span, said)) or [{"role": "assistant", "content": None}]
    choices = []
    for index, message in enumerate(answers):
        told = reasons[index] if isinstance(reasons, list) and index < len(reasons) else None
        reason = message.pop("finish_reason", None) or told or text_of(said.get("llm.finish_reason")) or "stop"
        choices.append({"index": index, "message": message, "finish_reason": str(reason)})
    return msgspec.json.encode({"object": "chat.completion", "choices": choices})


def _embeddings_request(model: str, texts: list[str]) -> bytes:
    return msgspec.json.encode({"model": model, "input": texts})


def _embeddings_answer() -> bytes:
    return b'{"object":"list","data":[]}'
