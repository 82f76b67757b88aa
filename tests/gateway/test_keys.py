"""Keys: who is let in, as what, until when, and what a running server sees of changes."""

import threading
import time

import msgspec
import pytest

from doorstep import ids
from doorstep.errors import BadInput, NotFound, StoreError, UsageError
from doorstep.gateway.keys import LOCAL, LOOK_S, Keys, Role, Terms

HOUR_US = 3_600_000_000


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path)


def bearer(secret):
    return {b"authorization": b"Bearer " + secret.encode()}


def noted(tmp_path):
    notes = []
    return Keys(tmp_path, note=lambda *note: notes.append(note)), notes


def test_without_a_key_the_machine_s_own_user_is_let_in_as_admin(keys):
    caller = keys.who({})
    assert (caller.key_id, caller.role, caller.may_call) == ("", Role.ADMIN, True)


@pytest.mark.parametrize(
    ("origin", "local"),
    [(b"http://localhost:3000", True), (b"https://evil.example", False), (b"null", False), (b"http://[", False)],
)
def test_without_a_key_a_page_of_another_origin_is_not_let_in(keys, origin, local):
    assert (keys.who({b"origin": origin}) is not None) is local


@pytest.mark.parametrize("name", ["x-api-key", "api-key", "x-goog-api-key", "authorization"])
def test_a_key_may_come_in_each_header_that_clients_use(keys, name):
    key, secret = keys.create(Terms(name="agent"))
    assert keys.who({name.encode(): secret.encode()}).key_id == key.key_id


def test_the_word_bearer_may_be_written_in_any_case(keys):
    _, secret = keys.create(Terms(name="agent"))
    assert keys.who({b"authorization": b"bearer " + secret.encode()})


@pytest.mark.parametrize("wrong", [{}, {b"authorization": b"Bearer tml-no"}, {b"x-api-key": b"\xff\xfe"}])
def test_with_a_key_nobody_else_is_let_in(keys, wrong):
    keys.create(Terms(name="agent"))
    assert keys.who(wrong) is None


def test_a_caller_has_the_terms_of_its_key(keys):
    terms = Terms(name="agent", role=Role.VIEWER, models=("openai/*",), day_microusd=5, workflow="orders", customer="c")
    _, secret = keys.create(terms)
    caller = keys.who(bearer(secret))
    assert (caller.name, caller.workflow, caller.customer) == ("agent", "orders", "c")
    assert (caller.allowance.models, caller.allowance.day_microusd) == (("openai/*",), 5)
    assert not caller.may_call


def test_a_viewer_may_not_train(keys):
    _, viewer = keys.create(Terms(name="v", role=Role.VIEWER))
    _, member = keys.create(Terms(name="m"))
    assert [bool(keys.caller({"Authorization": f"Bearer {secret}"})) for secret in (viewer, member)] == [False, True]


def test_the_server_s_own_key_is_the_local_user_beside_others(tmp_path):
    keys = Keys(tmp_path, own="tml-own")
    keys.create(Terms(name="agent"))
    assert keys.who(bearer("tml-own")) is LOCAL
    assert keys.who({}) is None


def test_a_server_that_others_reach_lets_nobody_in_without_a_key(tmp_path):
    assert Keys(tmp_path, open_to_local=False).who({}) is None


def test_an_expired_key_counts_no_more_and_opens_nothing(keys):
    _, secret = keys.create(Terms(name="agent", expires_us=ids.now_us() - 1))
    assert [keys.who(bearer(secret)), keys.who({})] == [None, None]


def test_a_running_server_sees_a_new_and_a_revoked_key_within_a_second(tmp_path):
    server, command = Keys(tmp_path), Keys(tmp_path)
    assert server.who({}) is LOCAL
    key, secret = command.create(Terms(name="agent"))
    command.create(Terms(name="other"))
    time.sleep(LOOK_S)
    assert server.who(bearer(secret)).key_id == key.key_id
    command.revoke(key.key_id)
    time.sleep(LOOK_S)
    assert server.who(bearer(secret)) is None


def test_looking_for_changes_is_no_work_of_every_call(tmp_path, monkeypatch):
    monkeypatch.setattr("doorstep.gateway.keys.LOOK_S", 3600)
    server, command = Keys(tmp_path), Keys(tmp_path)
    server.who({})
    _, secret = command.create(Terms(name="agent"))
    assert server.who(bearer(secret)) is LOCAL  # not looked at yet


def test_a_damaged_file_lets_in_only_the_server_s_own_key(tmp_path):
    server = Keys(tmp_path, own="tml-own")
    _, secret = server.create(Terms(name="agent"))
    (tmp_path / "keys.json").write_text("[{")
    with pytest.raises(UsageError, match="restore it"):
        server.all()
    assert [server.who(bearer(secret)), server.who({}), server.who(bearer("tml-own"))] == [None, None, LOCAL]


def test_keys_of_an_older_doorstep_are_members(tmp_path):
    digest = ids.digest(b"tml-old")
    (tmp_path / "keys.json").write_bytes(
        msgspec.json.encode([{"key_id": "key_1", "name": "old", "digest": digest, "created_us": 1}])
    )
    assert Keys(tmp_path).who(bearer("tml-old")).role is Role.MEMBER


def test_a_rotated_key_is_the_same_key_and_both_secrets_count_for_the_grace(keys):
    key, before = keys.create(Terms(name="agent", day_microusd=5))
    _, after = keys.rotate(key.key_id, grace_s=3600)
    assert [keys.who(bearer(secret)).key_id for secret in (before, after)] == [key.key_id] * 2
    assert keys.who(bearer(after)).allowance.day_microusd == 5


@pytest.mark.parametrize("grace_s", [0.0, 0.05])
def test_after_the_grace_the_secret_before_counts_no_more(keys, grace_s):
    key, before = keys.create(Terms(name="agent"))
    _, after = keys.rotate(key.key_id, grace_s)
    time.sleep(grace_s)
    assert keys.who(bearer(before)) is None
    assert keys.who(bearer(after))


def test_two_rotations_within_the_grace_keep_all_three(keys):
    key, first = keys.create(Terms(name="agent"))
    _, second = keys.rotate(key.key_id, 3600)
    _, third = keys.rotate(key.key_id, 3600)
    assert all(keys.who(bearer(secret)) for secret in (first, second, third))


def test_a_grace_does_not_outlive_the_key(keys):
    key, before = keys.create(Terms(name="agent"))
    keys.rotate(key.key_id, 3600)
    keys.change(key.key_id, {"expires_us": ids.now_us()})
    assert keys.who(bearer(before)) is None


def test_a_change_keeps_what_it_does_not_name(keys):
    key, secret = keys.create(Terms(name="agent", requests_per_minute=60, day_microusd=5))
    keys.change(key.key_id, {"day_microusd": None, "models": ["openai/*"]})
    allowance = keys.who(bearer(secret)).allowance
    assert (allowance.requests_per_minute, allowance.day_microusd, allowance.models) == (60, None, ("openai/*",))


@pytest.mark.parametrize(
    "changes", [{"requests_per_minute": 0}, {"day_microusd": -1}, {"role": "boss"}, {"digest": "0"}, {"name": ""}]
)
def test_what_cannot_be_is_refused_and_changes_nothing(keys, changes):
    key, _ = keys.create(Terms(name="agent"))
    with pytest.raises(BadInput):
        keys.change(key.key_id, changes)
    assert keys.all() == [key]


def test_a_key_that_is_not_there_is_a_clear_error(keys):
    for change in (lambda: keys.revoke("key_0"), lambda: keys.change("key_0", {}), lambda: keys.rotate("key_0", 0)):
        with pytest.raises(NotFound, match="doorstep keys list"):
            change()


def test_every_change_is_noted_without_a_secret(tmp_path):
    keys, notes = noted(tmp_path)
    key, secret = keys.create(Terms(name="agent", day_microusd=5))
    keys.change(key.key_id, {"day_microusd": 7})
    _, other = keys.rotate(key.key_id, 60)
    keys.revoke(key.key_id)
    assert [(action, subject) for action, subject, _ in notes] == [
        (f"key.{action}", key.key_id) for action in ("create", "change", "rotate", "revoke")
    ]
    assert notes[1][2] == {"day_microusd": [5, 7]}
    assert not any(word in str(notes) for word in (secret, other, key.digest))


def test_what_cannot_be_noted_does_not_happen(tmp_path):
    def full(*_note):
        raise StoreError("the disk is full")

    keys = Keys(tmp_path, note=full)
    with pytest.raises(StoreError):
        keys.create(Terms(name="agent"))
    assert keys.all() == []


def test_changes_at_the_same_time_are_all_kept(tmp_path):
    def create(name):
        Keys(tmp_path).create(Terms(name=name))

    threads = [threading.Thread(target=create, args=(f"agent {i}",)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in Keys(tmp_path).all()} == {f"agent {i}" for i in range(20)}


def test_only_its_user_can_read_the_file(tmp_path):
    Keys(tmp_path).create(Terms(name="agent"))
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
