"""The record as spans and metrics: what they say, and that each is sent though the collector is away."""

import json

import pytest
from collecting import collecting
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from doorstep import ids
from doorstep.config import ProviderSettings
from doorstep.gateway.compactor import Ended
from doorstep.gateway.metrics import MOST_SERIES
from doorstep.gateway.telemetry import content, cursor, otlp, spans
from doorstep.gateway.telemetry.collector import Collector, read_headers
from doorstep.gateway.telemetry.exporter import Exporter, Write, resource_of
from doorstep.gateway.telemetry.measures import Measures
from doorstep.gateway.telemetry.spans import Spelling, servers
from doorstep.store import Store
from doorstep.types import Call, Mode, Run, RunStatus

OLD, NEW = Spelling(old=True, new=False), Spelling(old=False, new=True)
SERVERS = servers({"google": ProviderSettings(base_url="https://google.test/v1beta")})


def call(number: int = 1, **changes) -> Call:
    values = {
        "call_id": f"call_{number}",
        "run_id": "run_1",
        "dialect": "openai.chat",
        "requested_model": "google/gemini",
        "served_model": "gemini",
        "provider": "google",
        "started_us": 1_000_000,
        "first_us": 1_200_000,
        "ended_us": 2_000_000,
        "input_tokens": 100,
        "output_tokens": 5,
        "finish_reason": "stop",
    }
    return Call(**(values | changes))


def run(**changes) -> Run:
    values = {
        "run_id": "run_1",
        "workflow": "orders",
        "variant": "base",
        "mode": Mode.PROD,
        "task_id": "t",
        "task_digest": "d",
        "status": RunStatus.OK,
        "started_us": 900_000,
        "ended_us": 3_000_000,
    }
    return Run(**(values | changes))


def span_of(made: Call, spelling: Spelling = OLD) -> spans.Span:
    return spans.of_call(made, spelling, SERVERS, {})


def test_a_call_is_a_client_span_with_the_names_of_the_conventions():
    span = span_of(call())
    said = span.attributes
    assert (span.name, span.kind, span.start_ns, span.end_ns) == ("chat google/gemini", 3, 10**9, 2 * 10**9)
    assert (said["gen_ai.system"], said["gen_ai.request.model"], said["server.address"], said["server.port"]) == (
        "gcp.gemini",
        "google/gemini",
        "google.test",
        443,
    )
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.response.finish_reasons"]) == (100, ["stop"])


def test_a_run_is_the_parent_of_its_calls():
    parent, child = spans.of_run(run()), span_of(call())
    assert (child.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)
    assert child.attributes["gen_ai.conversation.id"] == parent.attributes["gen_ai.conversation.id"] == "run_1"


def test_ids_come_from_those_of_the_record():
    assert span_of(call()) == span_of(call())
    assert span_of(call(1)).span_id != span_of(call(2)).span_id
    assert span_of(call(run_id=None)).parent_id is None


@pytest.mark.parametrize(
    ("opt_in", "names"),
    [
        ("", {"gen_ai.system"}),
        ("http/dup, gen_ai_latest_experimental", {"gen_ai.provider.name"}),
        ("gen_ai_latest_experimental/dup", {"gen_ai.system", "gen_ai.provider.name"}),
    ],
)
def test_the_environment_chooses_the_names(opt_in, names):
    said = span_of(call(), Spelling.asked_by({"OTEL_SEMCONV_STABILITY_OPT_IN": opt_in})).attributes
    assert said.keys() & {"gen_ai.system", "gen_ai.provider.name"} == names


def test_the_latest_names_tell_the_first_chunk_of_a_stream():
    assert span_of(call(stream=True), NEW).attributes["gen_ai.response.time_to_first_chunk"] == 0.2
    assert span_of(call(stream=False), NEW).attributes["gen_ai.response.time_to_first_chunk"] is None


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"status_code": 429, "error": "busy"}, "429"), ({"error": "it broke off"}, "stream_incomplete"), ({}, None)],
)
def test_a_failure_has_its_kind(changes, kind):
    span = span_of(call(**changes))
    assert (span.attributes["error.type"], span.error) == (kind, changes.get("error"))


def test_what_an_error_says_is_sent_without_personal_data():
    span = span_of(call(status_code=400, error="no such user: ann@example.com"))
    assert span.error == "no such user: [email]"


def test_content_is_sent_as_parts_without_personal_data(store):
    asked = {"model": "m", "messages": [{"role": "user", "content": "I am ann@example.com"}]}
    answered = {"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}
    bodies = {ids.digest(body): body for body in (json.dumps(asked).encode(), json.dumps(answered).encode())}
    request, response = bodies
    store.add(blobs=bodies)
    said = content.of_call(store, call(request_digest=request, response_digest=response))
    assert json.loads(said["gen_ai.input.messages"])[0]["parts"] == [{"type": "text", "content": "I am [email]"}]
    assert json.loads(said["gen_ai.output.messages"])[0] == {
        "role": "assistant",
        "parts": [{"type": "text", "content": "hello"}],
        "finish_reason": "stop",
    }


def test_deleted_content_is_not_sent(store):
    assert content.of_call(store, call(request_digest="f" * 64)) == {}


# The exporter


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


@pytest.fixture
def collector():
    with collecting() as found:
        yield found


class Bell:
    """Says when to finish; ``patience`` is how often it is waited for before that."""

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience

    @property
    def finishing(self) -> bool:
        return self.patience <= 0

    def wait(self, seconds: float) -> None:
        self.patience -= seconds > 0


def export(store, folder, collector, patience: int = 3) -> None:
    """Send what there is, from the cursor on."""
    file = folder / cursor.FILE
    cursor.begin(file, "record", store)
    write = Write(spelling=OLD, servers=SERVERS, content=False)
    Exporter(store, file, Collector(collector.url, {}), Bell(patience), write, resource_of({})).run()


def test_what_comes_after_the_start_is_sent_once(store, tmp_path, collector):
    store.add(call(1))
    export(store, tmp_path, collector)
    store.add(call(2), run())
    export(store, tmp_path, collector)
    export(store, tmp_path, collector)
    assert [span["name"] for span in collector.spans()] == ["chat google/gemini", "invoke_agent orders"]


def test_it_waits_for_a_collector_that_is_busy(store, tmp_path, collector):
    cursor.begin(tmp_path / cursor.FILE, "record", store)
    store.add(call())
    collector.answers = [503, 429]
    export(store, tmp_path, collector)
    assert len(collector.spans()) == 1
    assert collector.asked == 4  # twice in vain, then spans and metrics


def test_what_was_not_taken_is_sent_by_the_next_one(store, tmp_path, collector):
    cursor.begin(tmp_path / cursor.FILE, "record", store)
    store.add(call())
    collector.answers = [503] * 4
    with pytest.raises(Ended):
        export(store, tmp_path, collector)
    export(store, tmp_path, collector)
    assert [span["said"]["doorstep.call_id"] for span in collector.spans()] == ["call_1"]


def test_what_will_never_be_taken_holds_nothing_up(store, tmp_path, collector):
    cursor.begin(tmp_path / cursor.FILE, "record", store)
    store.add(call(1))
    collector.answers = [400]
    export(store, tmp_path, collector)
    store.add(call(2))
    export(store, tmp_path, collector)
    assert [span["said"]["doorstep.call_id"] for span in collector.spans()] == ["call_2"]


def test_another_record_begins_at_its_end(tmp_path, collector):
    cursor.save(tmp_path / cursor.FILE, cursor.Cursor(record="another", calls=0, runs=0))
    with Store.open(tmp_path / "new.db") as store:
        store.add(call())
        export(store, tmp_path, collector)
    assert collector.requests == []


def test_metrics_have_tokens_and_times(store, tmp_path, collector):
    cursor.begin(tmp_path / cursor.FILE, "record", store)
    store.add(call(1, stream=True), call(2, output_tokens=None, status_code=503))
    export(store, tmp_path, collector)
    usage = {one["said"]["gen_ai.token.type"]: one for one in collector.points("gen_ai.client.token.usage")}
    assert (usage["input"]["count"], usage["input"]["sum"], usage["output"]["sum"]) == ("2", 200, 5)
    errors = [one["said"].get("error.type") for one in collector.points("gen_ai.client.operation.duration")]
    assert errors == [None, "503"]
    (first,) = collector.points("gen_ai.client.operation.time_to_first_chunk")
    assert first["sum"] == 0.2


def test_the_official_messages_take_what_is_written():
    measures = Measures(OLD, SERVERS)
    measures.add(call(stream=True))
    spelt = otlp.write_measures(measures.all(), {"service.name": "door"}, 5, 9)
    metrics = json_format.Parse(spelt, ExportMetricsServiceRequest()).resource_metrics[0].scope_metrics[0].metrics
    (point, _) = metrics[0].histogram.data_points
    assert (metrics[0].name, point.sum, sum(point.bucket_counts)) == ("gen_ai.client.token.usage", 100.0, 1)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    spelt = otlp.write_spans([span_of(call(error="no", status_code=500))], {"service.name": "door"})
    (sent,) = json_format.Parse(spelt, ExportTraceServiceRequest()).resource_spans[0].scope_spans[0].spans
    assert (sent.name, sent.status.code, sent.end_time_unix_nano) == ("chat google/gemini", 2, 2 * 10**9)


def test_what_is_written_is_read_as_it_was():
    made = span_of(call())
    (read,) = otlp.read_spans(otlp.write_spans([made], {}), otlp.JSON).spans
    told = {name: value for name, value in made.attributes.items() if value is not None}
    assert (read.trace_id, read.span_id, read.parent_id) == (made.trace_id, made.span_id, made.parent_id)
    assert (read.attributes, read.start_ns, read.error) == (told, made.start_ns, None)


def test_names_that_clients_make_up_open_a_bounded_number_of_sums():
    measures = Measures(OLD, {})
    for number in range(2 * MOST_SERIES):
        measures.add(call(number, requested_model=f"made-up-{number}"))
    assert max(len(one.points) for one in measures.all()) <= MOST_SERIES + 2


def test_the_environment_names_who_sends_and_with_what_key():
    assert read_headers("authorization=Bearer%20abc, x-team = a") == {"authorization": "Bearer abc", "x-team": "a"}
    said = resource_of({"OTEL_SERVICE_NAME": "door", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod"})
    assert (said["service.name"], said["deployment.environment.name"]) == ("door", "prod")
