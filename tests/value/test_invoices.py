"""The record and a provider's own export of its costs are equal to the cent, or the difference is shown."""

from pathlib import Path

import pytest

from doorstep.errors import BadInput
from doorstep.value.invoices import reconcile

INVOICES = Path(__file__).with_name("invoices")


@pytest.fixture
def openai_calls(bought):
    bought("openai/gpt-5-mini", 1001, input_tokens=1000, cached_tokens=400, output_tokens=200)
    bought("openai/tts-1", 4, input_tokens=None, output_tokens=None, units={"characters": 5000})
    bought("openai/gpt-5-mini-2025-08-07", 150, day=1, input_tokens=500, output_tokens=100)
    bought("anthropic/claude-haiku-4-5", 3)


def test_the_record_is_equal_to_the_export_of_openai(store, openai_calls):
    found = reconcile(store, INVOICES / "openai_costs.csv")
    assert [(line.day, line.model, line.invoice_usd, line.record_usd, line.calls) for line in found.lines] == [
        ("2026-10-05", "gpt-5-mini", "0.56", "0.56", 1001),
        ("2026-10-05", "tts-1", "0.30", "0.30", 4),
        ("2026-10-06", "gpt-5-mini", "0.05", "0.05", 150),
    ]
    assert found.same


def test_the_record_is_equal_to_the_export_of_anthropic(store, bought):
    sonnet = {"input_tokens": 10_000, "cached_tokens": 5_000, "cache_write_tokens": 4_000, "output_tokens": 1_000}
    bought("anthropic/claude-sonnet-4-5-20250929", 100, **sonnet)
    bought("anthropic/claude-haiku-4-5", 100, input_tokens=1_000, output_tokens=100)
    found = reconcile(store, INVOICES / "anthropic_costs.csv")
    assert {line.model: (line.invoice_usd, line.record_usd) for line in found.lines} == {
        "claude-haiku-4-5": ("0.15", "0.15"),
        "claude-sonnet-4-5": ("3.45", "3.45"),
    }


def test_what_is_missing_on_either_side_is_shown(store, openai_calls, bought):
    bought("openai/gpt-5", 100)
    bought("openai/nobody-knows", 2)
    lines = {(line.day, line.model): line for line in reconcile(store, INVOICES / "openai_costs.csv").lines}
    extra, unknown = lines["2026-10-05", "gpt-5"], lines["2026-10-05", "nobody-knows"]
    assert (extra.invoice_usd, extra.record_usd, extra.same) == ("0.00", "0.22", False)
    assert (unknown.calls, unknown.unpriced) == (2, 2)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("day,usd\n1,2\n", "no export of costs"),
        ("usage_date_utc,model,cost_usd\n", "no charges"),
        ("usage_date_utc,model,cost_usd\nsoon,Claude,1\n", "csv:2"),
    ],
)
def test_another_file_is_said(store, tmp_path, text, why):
    file = tmp_path / "costs.csv"
    file.write_text(text)
    with pytest.raises(BadInput, match=why):
        reconcile(store, file)
