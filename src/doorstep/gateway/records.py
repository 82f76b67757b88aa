"""A capture as rows of the record: the call, its tries, its messages, its exact tokens. Pure; prices come from outside.

What a call's record lacks is said in ``gaps``: ``no_token_ids``, ``no_usage``, ``no_price``, ``stream_incomplete`` (the
end mark never came), ``request_not_understood`` and ``answer_not_understood`` (the bodies are kept all the same), and
``dropped_call``.
"""

import logging
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from doorstep import ids
from doorstep.gateway.capture import DROPPED, Capture
from doorstep.gateway.chat import Trace
from doorstep.gateway.dialects.base import Dialect, Reading
from doorstep.gateway.dialects.table import CHATS, DIALECTS
from doorstep.types import Attempt, Call, Node, TokenSpan
from doorstep.value.prices import Price

log = logging.getLogger(__name__)

PriceOf = Callable[[Call, float | None], Price]  # of a call and the CPU seconds that our own engine took for it


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What one call adds to the record. ``nodes`` may be known already: a run's later calls repeat its messages."""

    call: Call
    attempts: list[Attempt]
    nodes: list[Node]
    spans: list[TokenSpan]
    blobs: dict[str, bytes]


class Asked(msgspec.Struct, frozen=True):
    """What a request says."""

    sampling: dict[str, Any] = {}
    messages: Sequence[Mapping[str, Any]] = ()


def rows_of(capture: Capture, price_of: PriceOf) -> Rows:
    """Return the rows of a call."""
    dialect = DIALECTS[capture.dialect]
    gaps = list(capture.gaps)
    asked, reading = _asked(capture, dialect, gaps), _reading(capture, dialect, gaps)
    request_digest, response_digest = _digest(capture.request), _digest(capture.response)
    bodies = (request_digest, capture.request), (response_digest, capture.response)
    blobs = {digest: body for digest, body in bodies if digest is not None}
    nodes = [] if capture.run_id is None else _nodes(capture.run_id, capture, asked, reading, blobs)
    call = _call(capture, asked, reading, request_digest, response_digest, gaps)
    _note_gaps(capture, dialect, call, reading)
    return Rows(
        call=_priced(call, price_of(call, capture.trace.cpu_seconds if capture.trace else None)),
        attempts=_attempts(capture),
        nodes=nodes,
        spans=_spans(capture),
        blobs=blobs,
    )


def _digest(body: bytes) -> str | None:
    return ids.digest(body) if body else None


def _asked(capture: Capture, dialect: Dialect, gaps: list[str]) -> Asked:
    if DROPPED in gaps:
        return Asked()
    try:
        messages = () if capture.run_id is None else dialect.messages(capture.request)
        return Asked(dialect.sampling(capture.request), messages)
    except Exception as error:  # the bodies are there: a reader that learns better can read them again
        log.warning("the request of call %s was not understood: %r", capture.call_id, error)
        gaps.append("request_not_understood")
        return Asked()


def _reading(capture: Capture, dialect: Dialect, gaps: list[str]) -> Reading:
    if capture.status >= 400 or not capture.response:
        return Reading()
    try:
        return dialect.understand(capture.response)
    except Exception as error:
        log.warning("the answer of call %s was not understood: %r", capture.call_id, error)
        gaps.append("answer_not_understood")
        return Reading()


def _call(
    capture: Capture,
    asked: Asked,
    reading: Reading,
    request_digest: str | None,
    response_digest: str | None,
    gaps: list[str],
) -> Call:
    trace, usage = capture.trace, reading.usage
    if usage.output_tokens is None and capture.seen is not None:
        usage = capture.seen.usage
    input_tokens, output_tokens = usage.input_tokens, usage.output_tokens
    if trace is not None:
        input_tokens, output_tokens = len(trace.prompt), sum(len(sample.ids) for sample in trace.samples)
    return Call(
        call_id=capture.call_id,
        run_id=capture.run_id,
        dialect=capture.dialect,
        requested_model=capture.requested_model,
        served_model=capture.served_model,
        provider=capture.provider,
        adapter=capture.adapter,
        sampling=asked.sampling,
        stream=capture.stream,
        started_us=capture.started_us,
        first_us=capture.first_us,
        ended_us=capture.ended_us,
        finish_reason=reading.finish_reason,
        error=_storable(capture.error or reading.error),
        status_code=capture.status,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        request_digest=request_digest,
        response_digest=response_digest,
        retry_of=capture.retry_of,
        gaps=gaps,
        key_id=capture.key_id,
        customer=capture.customer,
        upstream_dialect=capture.upstream_dialect,
        upstream_id=capture.upstream_id,
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        units={**capture.units, **usage.units},
        cached=capture.cached,
    )


def _note_gaps(capture: Capture, dialect: Dialect, call: Call, reading: Reading) -> None:
    is_chat = dialect.NAME in CHATS
    if is_chat and capture.trace is None:
        call.gaps.append("no_token_ids")
    metered = call.output_tokens is not None if is_chat else call.input_tokens is not None or call.units
    if not metered:
        call.gaps.append("no_usage")
    if capture.stream and capture.status < 400 and not reading.complete:
        call.gaps.append("stream_incomplete")


def _priced(call: Call, price: Price) -> Call:
    gaps = [*call.gaps, "no_price"] if price.microusd is None else call.gaps
    return msgspec.structs.replace(
        call, cost_microusd=price.microusd, cost_basis=price.basis, price_version=price.version, gaps=gaps
    )


def _attempts(capture: Capture) -> list[Attempt]:
    return [
        Attempt(
            attempt_id=f"{capture.call_id}/{number}",
            call_id=capture.call_id,
            provider=attempt.provider,
            model=attempt.model,
            key=attempt.key,
            status_code=attempt.status,
            error=_storable(attempt.error),
            started_us=attempt.started_us,
            ended_us=attempt.ended_us,
        )
        for number, attempt in enumerate(capture.attempts, 1)
    ]


def _nodes(run_id: str, capture: Capture, asked: Asked, reading: Reading, blobs: dict[str, bytes]) -> list[Node]:
    """Return the messages as a path: an id is the digest of the way to it, so a message that comes again is one row."""
    path: list[Node] = []

    def node(parent: Node | None, role: str, content: bytes, sampled: bool) -> Node:
        digest = ids.digest(content)
        blobs[digest] = content
        parent_id = parent.node_id if parent else None
        name = ids.digest([run_id, parent_id, role, digest])[:32]
        call_id = capture.call_id if sampled else None
        return Node(
            node_id=f"node_{name}",
            run_id=run_id,
            parent_id=parent_id,
            role=role,
            content_digest=digest,
            sampled=sampled,
            call_id=call_id,
        )

    for message in asked.messages:
        path.append(
            node(
                path[-1] if path else None,
                str(message.get("role") or message.get("type")),
                _content(message),
                sampled=False,
            )
        )
    last = path[-1] if path else None
    answers = dict.fromkeys(_answers(reading)) if reading.finish_reason else {}  # the same answer is one node
    return path + [node(last, "assistant", answer, sampled=True) for answer in answers]


def _answers(reading: Reading) -> Iterator[bytes]:
    """Yield the answers' contents, those that hold more than text as messages."""
    if reading.messages:
        yield from map(_content, reading.messages)
    else:
        yield from (text.encode("utf-8", "surrogatepass") for text in reading.texts)


def _content(message: Mapping[str, Any]) -> bytes:
    """Return a message's content as it is stored: text as text, anything richer as the message's canonical JSON."""
    rest = {name: value for name, value in message.items() if name != "role" and value is not None}
    content = rest.get("content")
    if isinstance(content, str) and len(rest) == 1:
        return content.encode("utf-8", "surrogatepass")
    return ids.canonical(rest)


def _spans(capture: Capture) -> list[TokenSpan]:
    """Return the prompt (``seq`` 0) and the answers after it (1 …)."""
    trace = capture.trace
    if trace is None:
        return []
    prompt = _span(capture, trace, 0, trace.prompt, None)
    answers = [
        _span(capture, trace, index + 1, sample.ids, sample.logprobs)
        for index, sample in enumerate(trace.samples)
        if sample.ids
    ]
    return [prompt, *answers]


def _span(
    capture: Capture, trace: Trace, seq: int, tokens: Sequence[int], logprobs: Sequence[float] | None
) -> TokenSpan:
    return TokenSpan(
        span_id=f"{capture.call_id}/{seq}",
        call_id=capture.call_id,
        run_id=capture.run_id,
        seq=seq,
        ids=struct.pack(f"<{len(tokens)}i", *tokens),
        logprobs=None if logprobs is None else struct.pack(f"<{len(logprobs)}f", *logprobs),
        exact=True,
        sampled=logprobs is not None,
        policy=None if logprobs is None else trace.policy,
        tokenizer_digest=trace.tokenizer_digest,
    )


def _storable(text: str | None) -> str | None:
    """Return what a provider said as every database takes it: without lone surrogates and NUL."""
    return None if text is None else text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
