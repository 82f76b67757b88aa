"""A server with a collector beside it, and its page for Prometheus."""

import json
import re

import httpx
import pytest
from collecting import collecting
from gateway_parts import serving, settings_for, wait_for

from doorstep import ids
from doorstep.config import ModelSettings, ProviderSettings, TelemetrySettings, TrafficSettings
from doorstep.gateway.keys import Keys, Role, Terms
from doorstep.gateway.telemetry import otlp
from doorstep.gateway.telemetry.export import Export
from doorstep.gateway.telemetry.otlp import Span
from doorstep.store import Store
from doorstep.types import Call

FAKE = {"fake": ProviderSettings(base_url="fake:")}
LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')


@pytest.fixture
def collector():
    with collecting() as found:
        yield found


def ask(url, run_id=None, **fields):
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hello"}]} | fields
    scope = f"/runs/{run_id}" if run_id else ""
    return httpx.post(f"{url}{scope}/v1/chat/completions", json=body, timeout=30)


def page(url) -> dict[tuple[str, str], float]:
    """Return the samples of /metrics by name and labels, after a look at the form of every line."""
    found, kinds = {}, {}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            name, labels, value = LINE.fullmatch(line).groups()
            assert name in kinds or re.sub("_(bucket|sum|count)$", "", name) in kinds
            assert (name, labels) not in found
            found[name, labels or ""] = float(value)
    return found


def test_calls_come_to_the_collector(tmp_path, collector):
    settings = settings_for(tmp_path, model=None, providers=FAKE, telemetry=TelemetrySettings(otlp=collector.url))
    with serving(settings) as url:
        call_id = ask(url, "run_1", temperature=0.5).headers["x-doorstep-call-id"]
        (span,) = wait_for(collector.spans)
    assert (span["name"], span["said"]["doorstep.call_id"]) == ("chat fake/echo", call_id)
    assert (span["said"]["gen_ai.conversation.id"], span["said"]["gen_ai.request.temperature"]) == ("run_1", 0.5)
    assert span["said"]["gen_ai.usage.output_tokens"] > 0
    assert "gen_ai.input.messages" not in span["said"]


def test_content_comes_where_the_settings_say_so(tmp_path, collector):
    telemetry = TelemetrySettings(otlp=f"{collector.url}/", content=True)
    with serving(settings_for(tmp_path, model=None, providers=FAKE, telemetry=telemetry)) as url:
        ask(url)
        (span,) = wait_for(collector.spans)
    assert json.loads(span["said"]["gen_ai.input.messages"])[0]["parts"] == [{"type": "text", "content": "hello"}]


def test_what_came_last_is_sent_before_the_server_ends(tmp_path, collector):
    settings = settings_for(tmp_path, model=None, providers=FAKE, telemetry=TelemetrySettings(otlp=collector.url))
    with serving(settings) as url:
        for _ in range(5):
            ask(url)
    assert len(collector.spans()) == 5


def test_a_collector_that_is_not_there_is_in_nobodys_way(tmp_path, collector):
    settings = settings_for(
        tmp_path, model=None, providers=FAKE, telemetry=TelemetrySettings(otlp="http://127.0.0.1:1")
    )
    with serving(settings) as url:
        assert ask(url).status_code == 200
    settings = settings_for(tmp_path, model=None, providers=FAKE, telemetry=TelemetrySettings(otlp=collector.url))
    with serving(settings):
        assert len(wait_for(collector.spans)) == 1


def test_spans_of_others_are_taken_and_not_sent_on(tmp_path, collector):
    settings = settings_for(tmp_path, model=None, providers=FAKE, telemetry=TelemetrySettings(otlp=collector.url))
    said = {"gen_ai.operation.name": "chat", "gen_ai.system": "openai", "gen_ai.request.model": "gpt"}
    span = Span(trace_id="a" * 32, span_id="b" * 16, parent_id=None, name="chat", start_ns=5, end_ns=9, attributes=said)
    with serving(settings) as url:
        headers = {"content-type": "application/json"}
        assert httpx.post(f"{url}/v1/traces", content=otlp.write_spans([span], {}), headers=headers).json() == {}
        ask(url)
    assert [one["name"] for one in collector.spans()] == ["chat fake/echo"]


def test_an_exporter_that_is_killed_is_followed_by_another(tmp_path, collector):
    settings = settings_for(tmp_path, model=None, telemetry=TelemetrySettings(otlp=collector.url))
    with Store.open(settings.record) as store:
        export = Export(settings, store)
        export._process.kill()
        now = ids.now_us()
        store.add(
            Call(
                call_id="call_1", run_id=None, dialect="openai.chat", requested_model="m", served_model="m",
                provider="p", started_us=now, ended_us=now,
            )
        )  # fmt: skip
        assert [span["said"]["doorstep.call_id"] for span in wait_for(collector.spans)] == ["call_1"]
        export.close()


# For Prometheus

SERIES = 'dialect="openai.chat",provider="fake",model="echo"'


@pytest.fixture
def url(tmp_path):
    twice = ModelSettings(targets=["fake/busy"], fallback=["fake/echo"], retries=1)
    settings = settings_for(
        tmp_path,
        model=None,
        providers=FAKE,
        models={"twice": twice, "kept": ModelSettings(targets=["fake/echo"], cache="all")},
        traffic=TrafficSettings(backoff_s=0.01),
    )
    with serving(settings) as found:
        yield found


def test_calls_and_their_times_are_counted(url):
    ask(url)
    found = page(url)
    assert found["doorstep_calls_total", f'{SERIES},status="200"'] == 1
    assert found["doorstep_call_seconds_count", SERIES] == 1
    assert found["doorstep_call_seconds_bucket", f'{SERIES},le="+Inf"'] == 1
    assert found["doorstep_first_byte_seconds_sum", SERIES] <= found["doorstep_call_seconds_sum", SERIES]


def test_buckets_only_grow(url):
    ask(url)
    found = page(url)
    buckets = [n for (name, labels), n in found.items() if name == "doorstep_call_seconds_bucket" and SERIES in labels]
    assert buckets == sorted(buckets)


def test_tokens_and_cost_are_counted_once_they_are_recorded(url):
    ask(url)
    tokens = wait_for(lambda: page(url).get(("doorstep_tokens_sum", f'{SERIES},type="output"')))
    assert tokens > 0


def test_tries_again_and_elsewhere_are_counted(url):
    ask(url, model="twice")
    found = page(url)
    assert found["doorstep_tries_failed_total", 'provider="fake",status="429"'] >= 1
    assert found["doorstep_fallbacks_total", 'provider="fake",to="fake"'] == 1


def test_hits_of_the_cache_are_counted(url):
    ask(url, model="kept")
    ask(url, model="kept")
    found = page(url)
    assert (found["doorstep_cache_hits_total", SERIES], found["doorstep_cache_bytes", ""] > 0) == (1, True)


def test_names_that_clients_make_up_are_written_safely(url):
    ask(url, model='fake/a"b\\c\nd')
    assert sum(n for (name, _), n in page(url).items() if name == "doorstep_calls_total") == 1


def test_the_process_tells_what_it_is_and_takes(url):
    found = page(url)
    assert 10_000_000 < found["process_resident_memory_bytes", ""] < 10_000_000_000
    assert found["process_cpu_seconds_total", ""] > 0
    assert next(labels for name, labels in found if name == "doorstep_build_info").startswith('version="')


def test_money_is_shown_to_those_with_a_key(url, tmp_path):
    _, secret = Keys(tmp_path).create(Terms(name="prometheus", role=Role.VIEWER))
    wait_for(lambda: httpx.get(f"{url}/metrics").status_code == 401)
    assert httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {secret}"}).status_code == 200


def test_calls_over_a_limit_are_counted(url, tmp_path):
    _, secret = Keys(tmp_path).create(Terms(name="ann", requests_per_minute=1))
    given = {"authorization": f"Bearer {secret}"}
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hello"}]}
    wait_for(lambda: httpx.post(f"{url}/v1/chat/completions", json=body, headers=given).status_code == 429)
    text = httpx.get(f"{url}/metrics", headers=given).text
    assert re.search(r'doorstep_calls_limited_total\{code="[a-z_]+"\} 1', text)
