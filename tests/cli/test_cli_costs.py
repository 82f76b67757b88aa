"""``doorstep costs`` and ``doorstep customers`` on a record with hosted calls."""

from pathlib import Path

import pytest

from doorstep.store import Store
from doorstep.types import Audit, Call

DATABASE = ".doorstep/doorstep.db"
OWN_PRICE = '[prices.models."house/small"]\ninput = 1.0\noutput = 2.0\n'
INVOICE = "usage_date_utc,model,cost_usd\n2026-10-05,Claude Haiku 4.5,{}\n"


@pytest.fixture
def called(doorstep) -> None:
    """Three calls of one customer, two of them at a known price."""
    with Store.open(DATABASE) as store:
        for number, (provider, model, cost) in enumerate(
            [("anthropic", "claude-haiku-4-5", 5000), ("anthropic", "claude-haiku-4-5", 7000), ("house", "small", None)]
        ):
            store.add(
                Call(
                    call_id=f"call_{number}",
                    run_id=None,
                    dialect="openai.chat",
                    requested_model=f"{provider}/{model}",
                    served_model=model,
                    provider=provider,
                    started_us=1_791_158_400_000_000,
                    ended_us=1_791_158_400_000_001,
                    input_tokens=1000,
                    output_tokens=100,
                    cost_microusd=cost,
                    cost_basis=None if cost is None else "priced",
                    customer="acme",
                )
            )


def test_calls_are_priced_by_own_prices(doorstep, called):
    Path("doorstep.toml").write_text(OWN_PRICE)
    done = doorstep("costs", "reprice", "--json").json
    assert (done["calls"], done["unknown"]) == (3, 0)
    assert doorstep("costs", "reprice", "--json").json["corrected"] == 0


def test_pricing_says_what_is_still_unknown(doorstep, called):
    assert "still not known: 1" in doorstep("costs", "reprice").err
    assert doorstep("costs", "reprice", "--since", "soon").code == 2


@pytest.mark.parametrize(("charged", "code", "words"), [("0.01", 0, "Equal to the cent"), ("0.02", 1, "1 of 1 lines")])
def test_an_invoice_is_compared(doorstep, called, charged, code, words):
    Path("costs.csv").write_text(INVOICE.format(charged))
    ended = doorstep("costs", "reconcile", "costs.csv")
    assert (ended.code, words in ended.err, "2026-10-05" in ended.out) == (code, True, True)


def test_an_invoice_is_compared_for_scripts(doorstep, called):
    Path("costs.csv").write_text(INVOICE.format("0.01"))
    found = doorstep("costs", "reconcile", "costs.csv", "--json").json
    assert (found["provider"], found["same"], found["lines"][0]["calls"]) == ("anthropic", True, 2)


def test_a_customer_is_deleted_and_the_log_keeps_no_name(doorstep, called):
    ended = doorstep("customers", "delete", "acme", "--json").json
    assert (ended["runs"], ended["calls"], ended["adapters"]) == (0, 3, [])
    with Store.open(DATABASE) as store:
        assert {call.customer for call in store.select(Call)} == {None}
        (entry,) = store.select(Audit)
    assert (entry.action, "acme" in entry.subject) == ("customer.delete", False)


def test_deleting_says_what_was_deleted(doorstep, called):
    assert "0 runs and 3 calls contained" in doorstep("customers", "delete", "acme").err
