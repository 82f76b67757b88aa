"""``doorstep keys``: made once, listed without the secret, changed, rotated, revoked, and all of it in the log."""

import getpass
from pathlib import Path

import pytest

from doorstep import ids
from doorstep.gateway.keys import Keys
from doorstep.store import Store
from doorstep.types import Call

DAY_US = 86_400_000_000


def allowed(secret):
    return Keys(Path(".doorstep")).caller({"authorization": f"Bearer {secret}"}) is not None


def test_a_created_key_lets_its_caller_in_and_is_kept_as_a_digest(doorstep):
    key = doorstep("keys", "create", "--name", "agent", "--json").json["key"]
    assert allowed(key)
    assert key not in Path(".doorstep/keys.json").read_text("utf-8")


def test_the_key_alone_is_on_stdout(doorstep):
    assert allowed(doorstep("keys", "create").out.strip())


def test_a_revoked_key_is_refused(doorstep):
    made = doorstep("keys", "create", "--json").json
    doorstep("keys", "create", "--name", "other")
    assert doorstep("keys", "revoke", made["id"], "--json").json == {"id": made["id"], "revoked": True}
    assert not allowed(made["key"])


def test_revoking_the_last_key_tells_that_callers_need_none(doorstep):
    made = doorstep("keys", "create", "--json").json
    assert "callers need no key now" in doorstep("keys", "revoke", made["id"]).err


def test_a_key_is_made_with_its_terms(doorstep):
    options = ["--role", "viewer", "--model", "openai/*", "--model", "fast", "--requests-per-minute", "60"]
    options += ["--tokens-per-minute", "100000", "--usd-per-day", "2.50", "--usd-per-month", "$50", "--workflow", "w"]
    options += ["--customer", "c", "--retention-days", "30", "--expires", "2027-01-31"]
    made = doorstep("keys", "create", *options, "--json").json
    assert (made["role"], made["models"], made["workflow"], made["customer"]) == (
        "viewer",
        ["openai/*", "fast"],
        "w",
        "c",
    )
    assert (made["requests_per_minute"], made["tokens_per_minute"], made["retention_days"]) == (60, 100_000, 30)
    assert (made["day_microusd"], made["month_microusd"]) == (2_500_000, 50_000_000)
    assert made["expires_us"] == 1_801_353_600_000_000


def test_an_end_may_be_so_many_days_from_now(doorstep):
    expires = doorstep("keys", "create", "--expires", "30d", "--json").json["expires_us"]
    assert abs(expires - ids.now_us() - 30 * DAY_US) < DAY_US


def test_set_changes_what_is_given_and_none_takes_a_limit_away(doorstep):
    options = ["--usd-per-day", "2", "--requests-per-minute", "60", "--model", "openai/*"]
    made = doorstep("keys", "create", *options, "--json").json
    options = ["--usd-per-day", "3", "--requests-per-minute", "none", "--model", "none", "--name", "robot"]
    changed = doorstep("keys", "set", made["id"], *options, "--json").json
    assert (changed["day_microusd"], changed["requests_per_minute"], changed["models"]) == (3_000_000, None, [])
    assert (changed["name"], changed["id"]) == ("robot", made["id"])


def test_a_rotated_key_has_two_secrets_for_the_grace(doorstep):
    made = doorstep("keys", "create", "--json").json
    second = doorstep("keys", "rotate", made["id"], "--grace", "1h").out.strip()
    assert [allowed(made["key"]), allowed(second)] == [True, True]
    third = doorstep("keys", "rotate", made["id"], "--grace", "0s", "--json").json["key"]
    assert [allowed(made["key"]), allowed(second), allowed(third)] == [True, False, True]


def test_the_list_shows_names_limits_and_the_month_s_spend_and_no_secret(doorstep):
    made = doorstep("keys", "create", "--name", "agent", "--usd-per-day", "2.50", "--json").json
    now_us = ids.now_us()
    with Store.open(Path(".doorstep/doorstep.db")) as store:
        store.add(
            Call(
                call_id="call_1",
                run_id=None,
                dialect="openai.chat",
                requested_model="m",
                served_model="m",
                provider="openai",
                started_us=now_us,
                ended_us=now_us,
                cost_microusd=1_230_000,
                key_id=made["id"],
            )
        )
    shown = doorstep("keys", "list").out
    assert [text for text in (made["id"], "agent", "$2.50/day", "$1.23") if text not in shown] == []
    assert made["key"] not in shown


def test_the_log_tells_who_did_what(doorstep):
    made = doorstep("keys", "create", "--name", "agent", "--json").json
    doorstep("keys", "set", made["id"], "--usd-per-day", "5")
    doorstep("keys", "rotate", made["id"])
    doorstep("keys", "revoke", made["id"])
    found = doorstep("keys", "log", "--json").json["entries"]
    assert [entry["action"] for entry in found] == ["key.revoke", "key.rotate", "key.change", "key.create"]
    assert {(entry["subject"], entry["actor"]) for entry in found} == {(made["id"], f"cli:{getpass.getuser()}")}
    assert found[2]["detail"] == {"day_microusd": [None, 5_000_000]}
    assert made["id"] in doorstep("keys", "log").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["revoke", "key_0"], "keys list"),
        (["rotate", "key_0"], "keys list"),
        (["rotate", "key_0", "--grace", "soon"], "10m"),
        (["set", "key_0"], "nothing to change"),
        (["set", "key_0", "--name", "x"], "keys list"),
        (["create", "--usd-per-day", "much"], "dollars such as"),
        (["create", "--usd-per-day", "-1"], "day_microusd"),
        (["create", "--requests-per-minute", "1.5"], "whole number"),
        (["create", "--requests-per-minute", "0"], "requests_per_minute"),
        (["create", "--expires", "tomorrow"], "30d"),
        (["create", "--expires", "99999999999d"], "expires_us"),
        (["create", "--role", "boss"], "member"),
    ],
)
def test_what_cannot_be_is_a_clear_error(doorstep, arguments, said):
    ended = doorstep("keys", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
