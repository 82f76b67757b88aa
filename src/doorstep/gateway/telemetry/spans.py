"""Calls and runs of the record as spans, by OpenTelemetry's conventions for generative AI. Pure.

Attributes have the names of version 1.36, as those who emit them are asked to keep by default. With
``gen_ai_latest_experimental`` in ``OTEL_SEMCONV_STABILITY_OPT_IN`` they have the latest ones instead, with
``gen_ai_latest_experimental/dup`` both. Ids come from those of the record: what is sent twice is one span.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from doorstep import ids
from doorstep.config import ProviderSettings
from doorstep.gateway.telemetry.otlp import CLIENT, Span
from doorstep.store.redaction import redact
from doorstep.types import Call, Run, RunStatus
from doorstep.value.prices import LOCAL

OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
LATEST = "gen_ai_latest_experimental"
AGENT = "invoke_agent"
_OPERATIONS = {
    "openai.completions": "text_completion",
    "openai.embeddings": "embeddings",
    "google.generate_content": "generate_content",
    "openai.images": "generate_content",
    "openai.image_edits": "generate_content",
    "openai.videos": "generate_content",
    "openai.speech": "text_to_speech",
    "openai.transcription": "transcription",
    "openai.translation": "transcription",
    "anthropic.count_tokens": "count_tokens",
}
_PROVIDERS = {"google": "gcp.gemini", "mistral": "mistral_ai", "xai": "x_ai", LOCAL: "doorstep"}
_PORTS = {"http": 80, "https": 443}
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "n": "choice.count",
}


class Spelling(msgspec.Struct, frozen=True):
    """Which names are written."""

    old: bool
    new: bool

    @classmethod
    def asked_by(cls, environment: Mapping[str, str]) -> "Spelling":
        """Return what the environment opts in to."""
        asked = {one.strip() for one in environment.get(OPT_IN, "").split(",")}
        both = f"{LATEST}/dup" in asked
        return cls(old=both or LATEST not in asked, new=both or LATEST in asked)

    def provider(self, name: str) -> dict[str, Any]:
        """Return who served a call."""
        value = _PROVIDERS.get(name, name)
        return ({"gen_ai.system": value} if self.old else {}) | ({"gen_ai.provider.name": value} if self.new else {})


class Server(msgspec.Struct, frozen=True):
    """Where a provider is."""

    address: str
    port: int | None


def servers(providers: Mapping[str, ProviderSettings]) -> dict[str, Server]:
    """Return where the providers are that are somewhere."""
    split = {name: urlsplit(provider.base_url) for name, provider in providers.items()}
    return {
        name: Server(where.hostname, where.port or _PORTS.get(where.scheme))
        for name, where in split.items()
        if where.hostname
    }


def operation(call: Call) -> str:
    """Return what kind of call it was."""
    return _OPERATIONS.get(call.dialect, "chat")


def error_type(call: Call) -> str | None:
    """Return what class of error a call ended with; None for none."""
    if call.status_code >= 400:
        return str(call.status_code)
    return "stream_incomplete" if call.error is not None else None


def of_call(call: Call, spelling: Spelling, where: Mapping[str, Server], content: Mapping[str, Any]) -> Span:
    """Return the span of a call; ``content`` are more attributes of it."""
    kind, error = operation(call), error_type(call)
    return Span(
        trace_id=_trace_id(call.run_id or call.call_id),
        span_id=_span_id(call.call_id),
        parent_id=None if call.run_id is None else _span_id(call.run_id),
        name=f"{kind} {call.requested_model}",
        kind=CLIENT,
        start_ns=call.started_us * 1000,
        end_ns=max(call.started_us, call.ended_us) * 1000,
        attributes=_call_attributes(call, kind, error, spelling, where.get(call.provider)) | dict(content),
        error=None if error is None else redact(call.error or f"status {call.status_code}")[0],
    )


def of_run(run: Run) -> Span:
    """Return the span of a run, the parent of its calls."""
    failed = run.status not in (RunStatus.OK, RunStatus.CANCELLED)
    return Span(
        trace_id=_trace_id(run.run_id),
        span_id=_span_id(run.run_id),
        parent_id=None,
        name=f"{AGENT} {run.workflow}",
        start_ns=run.started_us * 1000,
        end_ns=max(run.started_us, run.ended_us) * 1000,
        attributes={
            "gen_ai.operation.name": AGENT,
            "gen_ai.agent.name": run.workflow,
            "gen_ai.conversation.id": run.run_id,
            "error.type": str(run.status) if failed else None,
            "doorstep.run_id": run.run_id,
            "doorstep.variant": run.variant,
            "doorstep.mode": str(run.mode),
            "doorstep.status": str(run.status),
            "doorstep.task_id": run.task_id,
            "doorstep.confidence": run.confidence,
        },
        error=redact(run.error or str(run.status))[0] if failed else None,
    )


def _call_attributes(
    call: Call, kind: str, error: str | None, spelling: Spelling, server: Server | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.operation.name": kind,
        **spelling.provider(call.provider),
        "gen_ai.request.model": call.requested_model,
        "gen_ai.response.model": call.served_model,
        "gen_ai.response.id": call.upstream_id,
        "gen_ai.response.finish_reasons": [call.finish_reason] if call.finish_reason else None,
        "gen_ai.usage.input_tokens": call.input_tokens,
        "gen_ai.usage.output_tokens": call.output_tokens,
        "gen_ai.conversation.id": call.run_id,
        "error.type": error,
        "server.address": server.address if server else None,
        "server.port": server.port if server else None,
        "doorstep.call_id": call.call_id,
        "doorstep.dialect": call.dialect,
        "doorstep.key_id": call.key_id,
        "doorstep.adapter": call.adapter,
        "doorstep.cached": call.cached or None,
        "doorstep.cost_usd": None if call.cost_microusd is None else call.cost_microusd / 1_000_000,
    }
    if spelling.new:
        found |= {
            "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
            "gen_ai.usage.cache_creation.input_tokens": call.cache_write_tokens,
            "gen_ai.usage.reasoning.output_tokens": call.reasoning_tokens,
            "gen_ai.response.time_to_first_chunk": first_chunk_s(call),
        }
    return found | _sampling(call.sampling)


def first_chunk_s(call: Call) -> float | None:
    """Return how long a stream's first piece took."""
    return (call.first_us - call.started_us) / 1_000_000 if call.stream and call.first_us is not None else None


def _sampling(said: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        f"gen_ai.request.{name}": said[own] for own, name in _SAMPLING.items() if isinstance(said.get(own), int | float)
    }
    stop = said.get("stop", said.get("stop_sequences"))
    if isinstance(stop, str | list):
        found["gen_ai.request.stop_sequences"] = [stop] if isinstance(stop, str) else stop
    return found


def _trace_id(of: str) -> str:
    return ids.digest(f"trace {of}".encode())[:32]


def _span_id(of: str) -> str:
    return ids.digest(f"span {of}".encode())[:16]
