"""A capture as rows of the record: the call, its messages and its exact tokens. Pure; prices come from outside."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from doorstep import ids
from doorstep.gateway.capture import Capture
from doorstep.gateway.chat import Trace
from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.dialects.base import Dialect, Reading
from doorstep.types import Call, Node, TokenSpan

DIALECTS: Mapping[str, Dialect] = {openai_chat.NAME: openai_chat}


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What one call adds to the record. ``nodes`` may be known already: a run's later calls repeat its messages."""

    call: Call
    nodes: list[Node]
    spans: list[TokenSpan]
    blobs: dict[str, bytes]


def rows_of(capture: Capture) -> Rows:
    """Return the rows of a call, not priced yet."""
    dialect = DIALECTS[capture.dialect]
    reading = dialect.understand(capture.response) if capture.status < 400 else Reading()
    blobs = {ids.digest(body): body for body in (capture.request, capture.response) if body}
    nodes = [] if capture.run_id is None else _nodes(capture.run_id, capture, dialect, reading, blobs)
    return Rows(call=_call(capture, dialect, reading), nodes=nodes, spans=_spans(capture), blobs=blobs)


def _call(capture: Capture, dialect: Dialect, reading: Reading) -> Call:
    trace = capture.trace
    input_tokens, output_tokens = reading.input_tokens, reading.output_tokens
    if trace is not None:
        input_tokens, output_tokens = len(trace.prompt), sum(len(sample.ids) for sample in trace.samples)
    gaps = [] if trace is not None else ["no_token_ids"]
    if output_tokens is None:
        gaps.append("no_usage")
    return Call(
        call_id=capture.call_id,
        run_id=capture.run_id,
        dialect=capture.dialect,
        requested_model=capture.requested_model,
        served_model=capture.served_model,
        provider=capture.provider,
        adapter=capture.adapter,
        sampling=dialect.sampling(capture.request),
        stream=capture.stream,
        started_us=capture.started_us,
        first_us=capture.first_us,
        ended_us=capture.ended_us,
        finish_reason=reading.finish_reason,
        error=capture.error,
        status_code=capture.status,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        request_digest=ids.digest(capture.request),
        response_digest=ids.digest(capture.response) if capture.response else None,
        gaps=gaps,
    )


def _nodes(run_id: str, capture: Capture, dialect: Dialect, reading: Reading, blobs: dict[str, bytes]) -> list[Node]:
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

    for message in dialect.messages(capture.request):
        path.append(node(path[-1] if path else None, str(message.get("role")), _content(message), sampled=False))
    last = path[-1] if path else None
    answers = dict.fromkeys(reading.texts) if reading.finish_reason else {}  # the same answer is one node
    return path + [node(last, "assistant", text.encode(), sampled=True) for text in answers]


def _content(message: Mapping[str, Any]) -> bytes:
    """Return a message's content as it is stored: text as text, anything richer as the message's canonical JSON."""
    rest = {name: value for name, value in message.items() if name != "role" and value is not None}
    content = rest.get("content")
    if isinstance(content, str) and len(rest) == 1:
        return content.encode()
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
