"""Keys over HTTP: what ``doorstep keys`` does, for admins only, and every change in the log."""

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from doorstep.gateway.admin import Administration
from doorstep.gateway.keys import Keys, Role, Terms
from doorstep.store import Store


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path, own="tml-own")


@pytest.fixture
def client(tmp_path, keys):
    with Store.open(tmp_path / "doorstep.db") as store:
        app = Starlette(routes=Administration(keys, tmp_path, store).routes())
        with TestClient(app, headers={"x-api-key": "tml-own"}) as client:
            yield client


def create(client, **terms):
    answer = client.post("/admin/keys", json={"name": "agent"} | terms)
    assert answer.status_code == 200
    return answer.json()


def test_a_key_is_made_and_counts_at_once(client, keys):
    made = create(client, role="viewer", models=["openai/*"], day_microusd=2_500_000)
    caller = keys.who({b"x-api-key": made["key"].encode()})
    assert (caller.key_id, caller.role, caller.allowance.day_microusd) == (made["id"], Role.VIEWER, 2_500_000)


def test_the_list_shows_the_terms_and_what_was_spent_and_no_secret(client):
    made = create(client, workflow="orders")
    answer = client.get("/admin/keys")
    (shown,) = answer.json()["keys"]
    assert {name: shown[name] for name in ("id", "name", "workflow", "spent_month_microusd")} == {
        "id": made["id"],
        "name": "agent",
        "workflow": "orders",
        "spent_month_microusd": 0,
    }
    assert made["key"] not in answer.text
    assert "digest" not in answer.text


def test_a_key_is_changed_rotated_and_revoked(client, keys):
    made = create(client, requests_per_minute=60)
    address = f"/admin/keys/{made['id']}"
    changed = client.patch(address, json={"requests_per_minute": None, "tokens_per_minute": 9}).json()
    assert (changed["requests_per_minute"], changed["tokens_per_minute"]) == (None, 9)
    rotated = client.post(f"{address}/rotate", json={"grace_s": 0}).json()
    known = [keys.who({b"x-api-key": secret.encode()}) is not None for secret in (made["key"], rotated["key"])]
    assert known == [False, True]
    assert client.delete(address).json() == {"id": made["id"], "revoked": True}
    assert keys.all() == []


def test_every_change_is_in_the_log_with_who_made_it(client):
    made = create(client, role="admin")
    client.headers["x-api-key"] = made["key"]
    client.patch(f"/admin/keys/{made['id']}", json={"day_microusd": 5})
    last, first = client.get("/admin/log").json()["entries"]
    assert (first["action"], first["actor"]) == ("key.create", "local")
    assert (last["action"], last["actor"], last["subject"]) == ("key.change", made["id"], made["id"])
    assert last["detail"] == {"day_microusd": [None, 5]}


@pytest.mark.parametrize(("role", "status"), [(Role.VIEWER, 403), (Role.MEMBER, 403), (Role.ADMIN, 200)])
def test_only_admins_may(client, keys, role, status):
    _, secret = keys.create(Terms(name="someone", role=role))
    assert client.get("/admin/keys", headers={"x-api-key": secret}).status_code == status


def test_nobody_may_without_a_key_that_counts(client, keys):
    keys.create(Terms(name="someone"))
    assert client.get("/admin/keys", headers={"x-api-key": "tml-no"}).status_code == 401


def test_a_page_of_another_origin_makes_no_key(client, keys):
    refused = client.post("/admin/keys", json={"name": "mine"}, headers={"origin": "https://evil.example"})
    assert (refused.status_code, keys.all()) == (401, [])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"name": "a", "requests_per_minute": 0}', "requests_per_minute"),
        (b'{"name": "a", "color": 1}', "color"),
        (b'{"role": "admin"}', "name"),
        (b"[1", "one JSON object"),
        (b'{"name": ' + b"[" * 20_000, "one JSON object"),
        (b'{"name": "a", "day_microusd": 1' + b"0" * 40 + b"}", "day_microusd"),
        (b'{"name": "\xff"}', "one JSON object"),
        (b'{"name": "' + b"a" * 100_000 + b'"}', "larger than"),
    ],
)
def test_a_body_that_cannot_be_is_a_clear_error(client, keys, body, said):
    answer = client.post("/admin/keys", content=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert keys.all() == []


def test_a_key_that_is_not_there_is_not_found(client):
    answers = [client.patch("/admin/keys/key_0", json={}), client.delete("/admin/keys/key_0")]
    assert [answer.status_code for answer in answers] == [404, 404]
