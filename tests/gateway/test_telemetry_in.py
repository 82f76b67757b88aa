"""Other systems' spans as runs and calls: what is understood, what is refused, and that twice is once."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import httpx
import pytest
from gateway_parts import serving
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.applications import Starlette

from doorstep.config import ModelPrice, PriceSettings
from doorstep.errors import BadInput
from doorstep.gateway.keys import Keys, Role, Terms
from doorstep.gateway.telemetry import intake, otlp, spans
from doorstep.gateway.telemetry.otlp import Event, Span
from doorstep.gateway.telemetry.spans import Spelling
from doorstep.store import Store
from doorstep.types import Call, Mode, Node, Run, RunStatus
from doorstep.value.repricing import reprice

TRACE, SPAN, ROOT = "a" * 32, "b" * 16, "c" * 16
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.system": "openai", "gen_ai.request.model": "gpt"}


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


@pytest.fixture
def address(store, tmp_path):
    with serving(None, app=Starlette(routes=intake.routes(store, Keys(tmp_path)))) as url:
        yield f"{url}/v1/traces"


def span(said=CHAT, **changes) -> Span:
    values = {"trace_id": TRACE, "span_id": SPAN, "parent_id": ROOT, "name": "chat gpt", "start_ns": 10**9}
    return Span(**(values | {"end_ns": 3 * 10**9, "attributes": said} | changes))


def root(said=None, **changes) -> Span:
    return span(said or {}, **({"span_id": ROOT, "parent_id": None, "name": "handle"} | changes))


def added(store, *found: Span) -> Call:
    intake.add(store, found, None, None)
    return store.select(Call)[0]


def asked(store, call: Call) -> dict:
    return json.loads(store.blob(call.request_digest))


def answered(store, call: Call) -> list:
    return [one["message"] for one in json.loads(store.blob(call.response_digest))["choices"]]


# What is understood


def test_a_span_is_a_call_without_token_ids(store):
    call = added(store, span(CHAT | {"gen_ai.response.model": "gpt-1", "gen_ai.response.id": "r1"}))
    assert (call.run_id, call.provider, call.requested_model, call.served_model) == (
        f"run_{TRACE}",
        "openai",
        "gpt",
        "gpt-1",
    )
    assert (call.started_us, call.ended_us, call.upstream_id, call.cost_microusd) == (10**6, 3 * 10**6, "r1", None)
    assert {"from_span", "no_content", "no_token_ids", "no_usage", "no_price"} <= set(call.gaps)


@pytest.mark.parametrize(
    "said",
    [
        CHAT | {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3},
        CHAT | {"gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 3},
        {"llm.request.type": "chat"} | CHAT | {"llm.usage.prompt_tokens": 7, "llm.usage.completion_tokens": 3},
        {"gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt"}
        | {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3},
        {"openinference.span.kind": "LLM", "llm.provider": "openai", "llm.model_name": "gpt"}
        | {"llm.token_count.prompt": 7, "llm.token_count.completion": 3},
    ],
)
def test_names_of_all_ages_say_the_same(store, said):
    call = added(store, span(said))
    assert (call.provider, call.served_model, call.input_tokens, call.output_tokens) == ("openai", "gpt", 7, 3)
    assert "no_usage" not in call.gaps


PARTS_IN = [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
PARTS_OUT = [{"role": "assistant", "parts": [{"type": "text", "content": "ho"}], "finish_reason": "length"}]
EVENTS = [
    Event("gen_ai.user.message", {"content": "hi"}),
    Event("gen_ai.choice", {"message": '{"content": "ho"}', "finish_reason": "length"}),
]
MESSAGES = [
    ({"gen_ai.input.messages": json.dumps(PARTS_IN), "gen_ai.output.messages": json.dumps(PARTS_OUT)}, []),
    ({"gen_ai.input.messages": PARTS_IN, "gen_ai.output.messages": PARTS_OUT}, []),
    (
        {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "hi", "gen_ai.completion.0.role": "assistant"}
        | {"gen_ai.completion.0.content": "ho", "gen_ai.completion.0.finish_reason": "length"},
        [],
    ),
    (
        {"llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "hi"}
        | {"llm.output_messages.0.message.role": "assistant", "gen_ai.response.finish_reasons": ["length"]}
        | {"llm.output_messages.0.message.contents.0.message_content.text": "ho"},
        [],
    ),
    ({}, EVENTS),
]


@pytest.mark.parametrize(("said", "events"), MESSAGES)
def test_messages_are_found_wherever_they_are(store, said, events):
    call = added(store, span(CHAT | said, events=events))
    assert asked(store, call)["messages"] == [{"role": "user", "content": "hi"}]
    assert answered(store, call) == [{"role": "assistant", "content": "ho"}]
    assert (call.finish_reason, "no_content" in call.gaps) == ("length", False)
    assert {node.role for node in store.select(Node)} == {"user", "assistant"}


TOOL_CALL = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}


@pytest.mark.parametrize(
    "said",
    [
        {
            "gen_ai.output.messages": [
                {
                    "role": "assistant",
                    "parts": [{"type": "tool_call", "id": "t1", "name": "look", "arguments": {"at": 1}}],
                }
            ]
        },
        {
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.tool_calls.0.tool_call.id": "t1",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "look",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"at":1}',
        },
        {
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.tool_calls.0.id": "t1",
            "gen_ai.completion.0.tool_calls.0.name": "look",
            "gen_ai.completion.0.tool_calls.0.arguments": '{"at":1}',
        },
    ],
)
def test_tool_calls_are_found(store, said):
    call = added(store, span(CHAT | said))
    assert answered(store, call) == [{"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}]


def test_sampling_settings_are_kept(store):
    said = {"gen_ai.request.temperature": 0.5, "llm.invocation_parameters": '{"max_tokens": 9, "temperature": 1}'}
    assert added(store, span(CHAT | said)).sampling == {"temperature": 0.5, "max_tokens": 9}


LOOK = {"name": "look", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    "said",
    [
        {"gen_ai.tool.definitions": json.dumps([{"type": "function"} | LOOK])},
        {"llm.tools.0.tool.json_schema": json.dumps({"type": "function", "function": LOOK})},
    ],
)
def test_tools_are_kept(store, said):
    call = added(store, span(CHAT | said))
    assert asked(store, call)["tools"] == [{"type": "function", "function": LOOK}]


def test_what_was_asked_for_is_not_what_answered(store):
    said = {"openinference.span.kind": "LLM", "llm.system": "openai", "llm.model_name": "gpt-1"}
    call = added(store, span(said | {"llm.invocation_parameters": '{"model": "gpt", "stream": true}'}))
    assert (call.requested_model, call.served_model, call.stream) == ("gpt", "gpt-1", True)


@pytest.mark.parametrize(
    ("said", "events"),
    [
        ({"gen_ai.response.time_to_first_chunk": 0.5}, []),
        ({}, [Event("First Token Stream Event", {}, 1_500_000_000), Event("First Token Stream Event", {}, 2 * 10**9)]),
    ],
)
def test_the_first_piece_of_a_stream_has_its_time(store, said, events):
    assert added(store, span(CHAT | said, events=events)).first_us == 1_500_000


@pytest.mark.parametrize(
    ("said", "error", "status"),
    [
        ({"error.type": "429"}, "too many", 429),
        ({"error.type": "RateLimitError"}, "Error code: 429 - too many", 429),
        ({"error.type": "timeout"}, "in 500 seconds", 500),
        ({"http.response.status_code": 503}, "", 503),
    ],
)
def test_a_failed_call_has_its_status(store, said, error, status):
    call = added(store, span(CHAT | said, error=error))
    assert (call.status_code, call.error) == (status, error or "chat gpt")


def test_embeddings_are_calls_of_their_own_kind(store):
    said = {"openinference.span.kind": "EMBEDDING", "embedding.model_name": "e", "llm.system": "openai"}
    call = added(store, span(said | {"embedding.embeddings.0.embedding.text": "hi"}))
    assert (call.dialect, asked(store, call)) == ("openai.embeddings", {"model": "e", "input": ["hi"]})


def test_embedded_texts_may_be_messages(store):
    said = {"gen_ai.operation.name": "embeddings", "gen_ai.input.messages": json.dumps(PARTS_IN)}
    assert asked(store, added(store, span(said)))["input"] == ["hi"]


def test_calls_whose_content_is_not_told_have_no_messages(store):
    added(store, span())
    assert store.select(Node) == []


def test_a_trace_is_a_run_once_its_root_comes(store):
    intake.add(store, [span()], None, None)
    assert store.select(Run) == []
    intake.add(store, [root({"gen_ai.agent.name": "helper", "user.id": "ann"}, error="it failed")], None, None)
    (run,) = store.select(Run)
    assert (run.run_id, run.workflow, run.mode, run.status) == (
        f"run_{TRACE}",
        "helper",
        Mode.PROD,
        RunStatus.AGENT_ERROR,
    )
    assert (run.customer, run.error, run.gaps) == ("ann", "it failed", ["no_token_ids", "from_span"])


def test_traces_without_models_leave_nothing(store):
    intake.add(store, [root({"http.request.method": "GET"}), span({"db.system": "sqlite"})], None, None)
    assert (store.select(Run), store.select(Call)) == ([], [])


def test_what_comes_twice_is_there_once(store):
    for _ in range(2):
        intake.add(store, [span(CHAT | {"gen_ai.prompt.0.content": "hi"}), root()], "key_1", None)
    assert (len(store.select(Call)), len(store.select(Run))) == (1, 1)


def test_what_it_cost_is_known_after_repricing(store):
    added(store, span(CHAT | {"gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 0}))
    prices = PriceSettings(models={"openai/gpt": ModelPrice(input=2.0, output=8.0)})
    assert reprice(store, prices).change_microusd == 2000


def test_what_doorstep_sent_out_does_not_come_in_again(store):
    made = added(store, span())
    sent = spans.of_call(made, Spelling(old=True, new=True), {}, {})
    intake.add(store, [sent], None, None)
    assert store.select(Call) == [made]


NUMBERS = count(1)


@pytest.fixture(scope="module")
def one_store(tmp_path_factory):
    with Store.open(tmp_path_factory.mktemp("any") / "record.db") as opened:
        yield opened


NAMES = st.sampled_from(
    [
        *CHAT,
        "embedding.embeddings.0.embedding",
        "error.type",
        "gen_ai.completion.0.tool_calls",
        "gen_ai.output.messages",
        "gen_ai.prompt",
        "gen_ai.prompt.0",
        "gen_ai.prompt.0.content",
        "gen_ai.response.finish_reasons",
        "gen_ai.system_instructions",
        "gen_ai.usage.input_tokens",
        "input.value",
        "llm.invocation_parameters",
        "llm.output_messages.0.message.tool_calls.0.tool_call",
        "output.value",
        "user.id",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["parts", "content", "type", "role", "id"]), inner)
        | inner.map(json.dumps)
    ),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, VALUES))
def test_whatever_attributes_say_the_call_is_kept(one_store, said, event):
    trace_id = f"{next(NUMBERS):032x}"
    events = [Event(name, event) for name in ("gen_ai.choice", "gen_ai.user.message", "gen_ai.content.prompt")]
    found = span(CHAT | said | CHAT, trace_id=trace_id, events=events), root(said, trace_id=trace_id)
    intake.add(one_store, found, None, None)
    assert one_store.get(Call, f"call_{trace_id}{SPAN}") is not None


# On the wire


def provider_for(address, **options):
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address, **options)))
    return provider


def test_the_official_sdk_sends_its_spans(address, store):
    provider = provider_for(address)
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("invoke_agent shop"):
        said = CHAT | {"gen_ai.usage.input_tokens": 7, "gen_ai.response.finish_reasons": ["stop"]}
        with tracer.start_as_current_span("chat gpt", kind=SpanKind.CLIENT, attributes=said) as inner:
            inner.set_status(Status(StatusCode.ERROR, "it broke"))
    assert provider.force_flush()
    provider.shutdown()
    (call,), (run,) = store.select(Call), store.select(Run)
    assert (call.run_id, call.input_tokens, call.error) == (run.run_id, 7, "it broke")
    assert (run.workflow, run.status) == ("shop", RunStatus.OK)


def test_both_spellings_say_the_same():
    (attribute,) = [{"key": "a", "value": {"arrayValue": {"values": [{"intValue": "-7"}, {"doubleValue": 0.5}]}}}]
    inside = {"traceId": TRACE, "spanId": SPAN, "name": "né", "startTimeUnixNano": "5", "endTimeUnixNano": "9"}
    inside |= {"attributes": [attribute], "status": {"code": 2, "message": "no"}}
    message = pb.ExportTraceServiceRequest()
    made = (
        message.resource_spans.add()
        .scope_spans.add()
        .spans.add(trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex(SPAN), name="né", kind=3)
    )
    made.start_time_unix_nano, made.end_time_unix_nano = 5, 9
    made.status.code, made.status.message = 2, "no"
    values = made.attributes.add(key="a").value.array_value.values
    values.add(int_value=-7)
    values.add(double_value=0.5)
    spelt = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [inside]}]}]}).encode()
    read = otlp.read_spans(spelt, otlp.JSON)
    assert read == otlp.read_spans(message.SerializeToString(), otlp.PROTOBUF)
    assert (read.spans[0].attributes, read.spans[0].error) == ({"a": [-7, 0.5]}, "no")


@given(st.binary(max_size=200))
def test_any_bytes_are_spans_or_refused(body):
    for media_type in (otlp.JSON, otlp.PROTOBUF):
        with suppress(BadInput):
            assert otlp.read_spans(body, media_type).spans == []


def request_of(*found: Span) -> bytes:
    return otlp.write_spans(found, {"service.name": "shop"})


def test_compressed_bodies_are_unpacked(address, store):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = httpx.post(address, content=gzip.compress(request_of(span())), headers=headers)
    assert (answer.status_code, answer.json(), len(store.select(Call))) == (200, {}, 1)


def test_spans_that_are_none_are_counted_and_the_others_kept(address, store):
    body = request_of(span(), span(trace_id="0" * 32), span(start_ns=5, end_ns=1))
    answer = httpx.post(address, content=body, headers={"content-type": "application/json"})
    partial = answer.json()["partialSuccess"]
    assert (answer.status_code, partial["rejectedSpans"], len(store.select(Call))) == (200, "2", 1)
    assert "no valid ids" in partial["errorMessage"]


def test_protobuf_is_answered_in_protobuf(address):
    message = pb.ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().spans.add(name="no ids")
    headers = {"content-type": "application/x-protobuf"}
    answer = httpx.post(address, content=message.SerializeToString(), headers=headers)
    said = pb.ExportTraceServiceResponse.FromString(answer.content)
    assert (answer.headers["content-type"], said.partial_success.rejected_spans) == ("application/x-protobuf", 1)
    assert "no valid ids" in said.partial_success.error_message


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"[]", {"content-type": "application/json"}, 400),
        (b'{"resourceSpans": 1}', {"content-type": "application/json; charset=utf-8"}, 400),
        (b"\x0a\xff", {"content-type": "application/x-protobuf"}, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-type": "application/json", "content-encoding": "br"}, 415),
        (b"{}", {"content-type": "application/json", "content-encoding": "gzip"}, 400),
        (gzip.compress(b"{}")[:-4], {"content-type": "application/json", "content-encoding": "gzip"}, 400),
    ],
)
def test_what_cannot_be_read_is_refused(address, body, headers, status):
    assert httpx.post(address, content=body, headers=headers).status_code == status


def test_a_body_that_unpacks_to_too_much_is_refused(address, monkeypatch):
    monkeypatch.setattr(intake, "BODY_BYTES", 10_000)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert httpx.post(address, content=gzip.compress(b" " * 20_000), headers=headers).status_code == 413


def test_only_keys_that_may_call_may_send(address, tmp_path):
    _, reader = Keys(tmp_path).create(Terms(name="reader", role=Role.VIEWER))
    headers = {"content-type": "application/json"}
    httpx.post(address, content=b"{}", headers=headers)
    for key, status in (("wrong", 401), (reader, 403)):
        given = headers | {"authorization": f"Bearer {key}"}
        assert httpx.post(address, content=b"{}", headers=given).status_code == status


def test_many_at_once_are_all_kept(address, store):
    def send(number: int) -> int:
        body = request_of(*(span(span_id=f"{number:08x}{one:08x}") for one in range(1, 20)))
        return httpx.post(address, content=body, headers={"content-type": "application/json"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(1, 20))) == {200}
    assert len(store.select(Call)) == 19 * 19
