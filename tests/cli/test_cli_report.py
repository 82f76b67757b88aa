"""``doorstep report``: figures from rows, the same on the page and in JSON."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from doorstep.cli.charts import intervals, line
from doorstep.cli.reporting import usd


class Page(HTMLParser):
    """Collects the cells of tables by their id, and everything that the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self._rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "table":
            self._rows = self.tables.setdefault(values.get("id", ""), [])
        if tag == "tr":
            self._rows.append([])
        self._in_cell = tag in ("td", "th")
        if self._in_cell:
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self._rows[-1][-1] += data


@pytest.fixture
def reported(doorstep, improved):
    report = doorstep("report", "crates", "--out", "report.html", "--json").json
    return report, Page(Path("report.html").read_text("utf-8"))


def test_the_contract_shape(reported, improved):
    report, _ = reported
    assert (report["workflow"], report["seed"], report["held_out"]) == ("crates", 3, 40)
    assert [stage["name"] for stage in report["stages"]] == ["base", "sft", "rl"]
    assert {"name", "score", "low", "high", "n"} <= report["stages"][0].keys()
    assert {"id", "verdict", "p_value"} <= report["decision"].keys()
    assert report["decision"]["p_value"] < 0.01


def test_json_beside_the_page_is_what_was_printed(reported):
    assert json.loads(Path("report.json").read_text("utf-8")) == reported[0]


def test_the_page_shows_the_figures_of_the_json(reported):
    report, page = reported
    shown = {row[0]: row[1:5] for row in page.tables["stages"][1:]}
    assert shown == {
        stage["name"]: [
            f"{stage['score']:.1%}",
            f"{stage['low']:.1%} … {stage['high']:.1%}",
            str(stage["n"]),
            str(stage["missing"]),
        ]
        for stage in report["stages"]
    }


def test_the_page_fetches_nothing_and_runs_nothing(reported):
    _, page = reported
    assert page.fetched == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3


def test_what_the_model_wrote_is_shown_as_text_not_as_markup(reported):
    report, page = reported
    assert len(report["mistakes"]) == 3
    assert "b" not in page.tags
    assert "<b>many</b>" in page.tables["mistakes"][1][3]


def test_own_cost_is_the_serving_cpu_time_at_the_core_hour_price(reported):
    # 7.2 CPU seconds for 40 inputs: 180 for 1,000, at $0.05 an hour
    assert reported[0]["cost_per_1000"]["own_usd"] == pytest.approx(0.0025)


def test_list_prices_are_of_the_same_tokens(reported):
    prices = reported[0]["cost_per_1000"]["list_price_usd"]
    # 300 tokens in and 20 out, at $0.25 and $2 a million: openai.com/api/pricing
    assert prices["openai/gpt-5-mini"] == pytest.approx(0.115)
    assert len(prices) == 3
    assert all(price > 0 for price in prices.values())


def test_training_cost_and_break_even(reported):
    report, _ = reported
    assert report["training"] == {"cpu_seconds": 72.0, "usd": 0.001, "stages": {"rl": 36.0, "sft": 36.0}}
    # $0.001 once, against $0.000115 - $0.0000025 saved an input
    assert report["break_even"]["openai/gpt-5-mini"]["runs"] == 9


def test_a_step_done_again_after_a_kill_counts_once_as_it_was_done_last(reported):
    curves = {curve["stage"]: curve["points"] for curve in reported[0]["curves"]}
    assert curves["sft"][0] == 1.0
    assert [len(points) for points in curves.values()] == [3, 3]


def test_the_figures_stand_when_the_records_are_gone(doorstep, improved):
    Path("workflows/crates/records.jsonl").unlink()
    report = doorstep("report", "crates", "--json").json
    assert report["stages"][2]["score"] == 37 / 40
    assert report["mistakes"] == []


def test_the_terminal_shows_scores_costs_and_the_decision(doorstep, improved):
    shown = doorstep("report", "crates").out
    for text in ("92.5%", "openai/gpt-5-mini", "after 9 inputs", improved.decision.decision_id, "72 CPU seconds"):
        assert text in shown


def test_a_line_chart_goes_from_left_to_right_within_its_frame():
    places = re.search(r'polyline class="curve" points="([^"]+)"', line([4.0, 2.0, 1.0], "loss"))[1]
    xs, ys = zip(*(map(float, place.split(",")) for place in places.split()), strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)  # a falling loss goes down the page


def test_chart_labels_are_escaped():
    assert "<x>" not in intervals([("<x>", 0.5, 0.4, 0.6)], "<x>")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "not known"), (0.0, "$0.00"), (12.345, "$12.35"), (0.0025, "$0.0025"), (1e-6, "$0.000001")],
)
def test_money_keeps_its_figures_below_a_cent(value, shown):
    assert usd(value) == shown
