"""``doorstep keys``: made once, listed without the secret, revoked."""

from pathlib import Path

from doorstep.gateway.keys import Keys


def test_a_created_key_lets_its_caller_in_and_is_kept_as_a_digest(doorstep):
    key = doorstep("keys", "create", "--name", "agent", "--json").json["key"]
    assert Keys(Path(".doorstep")).allow({"authorization": f"Bearer {key}"})
    assert key not in Path(".doorstep/keys.json").read_text("utf-8")


def test_a_revoked_key_is_refused(doorstep):
    key = doorstep("keys", "create", "--json").json["key"]
    doorstep("keys", "create", "--name", "other")
    (first, _) = doorstep("keys", "list", "--json").json["keys"]
    assert doorstep("keys", "revoke", first["id"]).code == 0
    assert not Keys(Path(".doorstep")).allow({"authorization": f"Bearer {key}"})


def test_the_list_shows_names_and_no_secret(doorstep):
    key = doorstep("keys", "create", "--name", "agent", "--json").json["key"]
    shown = doorstep("keys", "list").out
    assert "agent" in shown
    assert key not in shown


def test_revoking_an_unknown_key_is_a_clear_error(doorstep):
    ended = doorstep("keys", "revoke", "key_0")
    assert (ended.code, ended.out) == (2, "")
    assert "keys list" in ended.err
