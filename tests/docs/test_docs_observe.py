"""What the page on observing says of figures, settings and names is so."""

import re
from types import SimpleNamespace

import pytest
from pages import ROOT, blocks, section, table_rows

from doorstep import config
from doorstep.gateway import exposition
from doorstep.gateway.cache import Cache
from doorstep.gateway.capture import Attempt
from doorstep.gateway.histogram import TOKENS, Histogram
from doorstep.gateway.metrics import Metrics
from doorstep.gateway.telemetry import collector, reading, spans
from doorstep.gateway.telemetry.measures import Measures
from doorstep.gateway.telemetry.spans import Spelling
from doorstep.gateway.traffic import Traffic
from doorstep.gateway.usage import Meter, Used
from doorstep.store import Store
from doorstep.training.metrics import families
from doorstep.training.steps import OPTIM_STEP, StepLog
from doorstep.types import Call

PAGE = ROOT / "docs" / "how-to" / "observe.md"
TEXT = PAGE.read_text("utf-8")


@pytest.fixture
def shown(tmp_path) -> str:
    """A page for Prometheus with a sample of everything."""
    metrics, traffic, label = Metrics(), Traffic(), ("openai.chat", "a", "m")
    metrics.count(*label, 200, 0.1, 0.1)
    tries = [Attempt(provider="a", model=model, started_us=0, ended_us=1, status=503) for model in "mmn"]
    metrics.count_tries(tries, None)
    metrics.count_limited("rate")
    traffic.circuits.failed("a", "m", traffic.clock(), "busy")
    provider = SimpleNamespace(name="a", keys=[SimpleNamespace(label="A_KEY")])
    traffic.ring(SimpleNamespace(provider=provider)).busy(0, "m", 60.0, traffic.clock(), "busy")
    recorder = SimpleNamespace(dropped=0, refused=0, backlog=0, away_s=0.0)
    with Store.open(tmp_path / "record.db") as store:
        meter = Meter(store)
    meter.used[label] = Used()
    meter.used[label].input = Histogram(TOKENS)
    cache, training = Cache(config.CacheSettings()), families(_training(tmp_path))
    return exposition.text(metrics, meter, recorder, traffic, cache, training).decode()


def _training(folder):
    """What of a training service the figures are taken from, after one step."""
    steps = StepLog(lambda _: folder / "steps.jsonl")
    steps.note("run", OPTIM_STEP, seconds=0.1)
    return SimpleNamespace(steps=steps, live_models=lambda: 1, queued=lambda: {"optim_step": 1})


def test_every_figure_stands_with_its_labels(shown):
    wanted = {}
    for name, labels in re.findall(r"^([a-z_]+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? ", shown, re.MULTILINE):
        found = [label for label in re.findall(r'(\w+)="', labels) if label != "le"]
        wanted[name] = ", ".join(found) or "none"
    rows = table_rows(section(PAGE, "## Prometheus"))
    assert {row[0].strip("`"): row[1] for row in rows if row[0].startswith("`")} == wanted


def test_what_alerts_look_at_is_there(shown):
    for name in re.findall(r"doorstep_[a-z_]+", "".join(blocks(PAGE, "yaml"))):
        assert f"# TYPE {name} " in shown


def test_its_toml_is_a_file_of_settings(tmp_path):
    (text,) = blocks(PAGE, "toml")
    (tmp_path / "doorstep.toml").write_text(text, "utf-8")
    assert config.load(tmp_path / "doorstep.toml").telemetry.otlp == "http://127.0.0.1:4318"


def test_its_names_are_those_of_the_code():
    call = Call(
        call_id="c", run_id=None, dialect="openai.chat", requested_model="m", served_model="m", provider="p",
        stream=True, started_us=1, first_us=2, ended_us=3, input_tokens=1,
    )  # fmt: skip
    measures = Measures(Spelling(old=True, new=False), {})
    measures.add(call)
    for name in (*(one.name for one in measures.all()), spans.OPT_IN, spans.LATEST, collector.HEADERS):
        assert f"`{name}`" in TEXT
    for name in (reading.FROM_SPAN, reading.NO_CONTENT, reading.VARIANT):
        assert f"`{name}`" in TEXT
