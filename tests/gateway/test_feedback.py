"""Feedback over HTTP: every kind, late and repeated, by whom, and on calls that the store has not got yet."""

import threading

import httpx
import openai
import pytest
from captures import capture
from starlette.applications import Starlette
from starlette.testclient import TestClient

from doorstep.config import PriceSettings
from doorstep.gateway import feedback
from doorstep.gateway.feedback import routes
from doorstep.gateway.keys import Keys, Role, Terms
from doorstep.gateway.recorder import Recorder
from doorstep.ids import new_id
from doorstep.store import Store
from doorstep.store.views import grades_of
from doorstep.types import Call, Feedback, Grade, GradeSource


class StreamPlaces:
    """Where the recorder and the store are."""

    def __init__(self) -> None:
        self.written = self.stored = 100


def call(call_id: str, run_id: str | None) -> Call:
    return Call(
        call_id=call_id,
        run_id=run_id,
        dialect="openai.chat",
        requested_model="tiny",
        served_model="tiny",
        provider="local",
        started_us=1,
        ended_us=2,
    )


@pytest.fixture
def lag():
    return StreamPlaces()


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "doorstep.db") as store:
        store.add(call("call_a", "run_1"), call("call_b", "run_2"), call("call_c", "run_2"), call("call_d", None))
        yield store


@pytest.fixture
def client_of_run(address):
    with openai.OpenAI(base_url=f"{address}/runs/run_1/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def client(store, lag, tmp_path):
    app = Starlette(routes=routes(store, lag, Keys(tmp_path).who))
    with TestClient(app) as client:
        yield client


def give(client, status=200, path="/feedback", **body):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("sent", "kind", "value"),
    [
        ({"name": "accepted", "value": True}, "boolean", True),
        ({"name": "score", "value": 1}, "float", 1.0),
        ({"name": "minutes", "value": 12.5}, "float", 12.5),
        ({"value": "too long"}, "comment", "too long"),
        ({"value": "Dear Ms Miller", "kind": "demonstration"}, "demonstration", "Dear Ms Miller"),
        ({"value": {"qty": 3}, "kind": "demonstration"}, "demonstration", {"qty": 3}),
    ],
)
def test_the_kind_follows_from_the_value_unless_it_is_said(client, store, sent, kind, value):
    given = give(client, run_id="run_1", **sent)
    row = store.get(Feedback, given["id"])
    assert (row.kind, row.value, row.name) == (kind, value, sent.get("name", kind))
    assert (row.run_id, row.call_id, row.source) == ("run_1", None, GradeSource.HUMAN)


def test_a_judgement_from_0_to_1_grades_the_run(client, store):
    give(client, run_id="run_1", name="accepted", value=False)
    give(client, run_id="run_1", name="score", value=0.25, source="outcome")
    give(client, run_id="run_1", name="minutes", value=12.5)
    grades = {grade.name: (grade.value, grade.source) for grade in grades_of(store, "run_1")}
    assert grades == {"accepted": (0.0, GradeSource.HUMAN), "score": (0.25, GradeSource.OUTCOME)}


def test_what_is_said_later_counts_even_if_it_comes_earlier(client, store):
    give(client, run_id="run_1", name="accepted", value=True, at="2026-11-03T10:00:00Z")
    give(client, run_id="run_1", name="accepted", value=False, at="2026-11-02T10:00:00Z")
    (grade,) = grades_of(store, "run_1")
    assert grade.value == 1.0
    assert [each["value"] for each in client.get("/feedback?run_id=run_1").json()["data"]] == [False, True]


@pytest.mark.parametrize(("call_id", "graded"), [("call_a", "run_1"), ("call_b", None), ("call_d", None)])
def test_feedback_on_a_call_grades_its_run_when_that_has_no_other(client, store, call_id, graded):
    given = give(client, call_id=call_id, name="accepted", value=True)
    assert given["grades"] == graded
    assert {grade.run_id for grade in store.select(Grade)} == ({graded} if graded else set())
    assert store.get(Feedback, given["id"]).call_id == call_id


def test_a_preference_can_be_sent_in_two_ways(client, store):
    first = give(client, value={"chosen": "call_b", "rejected": "call_c"})
    second = give(client, call_id="call_b", value={"better_than": "call_c"})
    rows = [store.get(Feedback, each["id"]) for each in (first, second)]
    assert [(row.kind, row.call_id, row.value) for row in rows] == [
        ("preference", "call_b", {"chosen": "call_b", "rejected": "call_c"})
    ] * 2


@pytest.mark.parametrize(
    ("sent", "where"),
    [
        ({"value": True, "name": "x"}, "run_id"),
        ({"value": True, "run_id": "run_1"}, "name"),
        ({"run_id": "run_1", "name": "x"}, "feedback"),
        ({"value": None, "run_id": "run_1"}, "kind"),
        ({"value": {"qty": 3}, "run_id": "run_1"}, "kind"),
        ({"value": "yes", "kind": "boolean", "name": "x", "run_id": "run_1"}, "value"),
        ({"value": "0.5", "kind": "float", "name": "x", "run_id": "run_1"}, "value"),
        ({"value": 10**400, "name": "x", "run_id": "run_1"}, "value"),
        ({"value": "", "run_id": "run_1"}, "value"),
        ({"value": [], "kind": "demonstration", "run_id": "run_1"}, "value"),
        ({"value": {"chosen": "call_a", "rejected": "call_a"}}, "value"),
        ({"value": {"chosen": "call_a"}}, "value"),
        ({"value": {"better_than": "call_a"}, "run_id": "run_1"}, "call_id"),
        ({"value": 1, "name": "x\u0000", "run_id": "run_1"}, "name"),
        ({"value": 1, "name": "x", "run_id": "run 1"}, "run_id"),
        ({"value": 1, "name": "x", "run_id": "run_1", "at": "2999-01-01T00:00:00Z"}, "at"),
        ({"value": 1, "name": "x", "run_id": "run_1", "at": "yesterday"}, "at"),
        ({"value": 1, "name": "x", "run_id": "run_1", "mood": 1}, "feedback"),
        ({"value": 1, "name": "x", "run_id": "run_1", "call_id": "call_b"}, "run_id"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(client, store, sent, where):
    answer = client.post("/feedback", json=sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, where)
    assert store.select(Feedback) == []


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b"[" * 100_000, b'"hello"', b"{}", b'{"value": "' + b"x" * 1_000_000 + b'"}']
)
def test_a_body_that_is_no_feedback_is_refused(client, body):
    assert client.post("/feedback", content=body).status_code == 400


def test_the_same_id_counts_once_and_means_one_thing(client, store):
    first = give(client, id="click 7", run_id="run_1", name="accepted", value=True)
    assert give(client, id="click 7", run_id="run_1", name="accepted", value=True) == first
    give(client, 409, id="click 7", run_id="run_1", name="accepted", value=False)
    assert (len(store.select(Feedback)), len(store.select(Grade))) == (1, 1)


def test_many_at_once_are_one_row_each_and_a_bad_one_is_its_own_trouble(client, store):
    good = {"run_id": "run_1", "name": "accepted", "value": True, "id": "1"}
    sent = [good, {"run_id": "run_1"}, {"run_id": "run_9", "value": "who?"}, good, {**good, "value": False}, 7]
    results = client.post("/feedback", json=sent).json()["data"]
    assert [result.get("error", {}).get("type", "kept") for result in results] == [
        "kept",
        *["invalid_request_error"] * 2,
        "kept",
        *["invalid_request_error"] * 2,
    ]
    assert len(store.select(Feedback)) == 1


def test_of_many_at_once_the_last_counts(client, store):
    client.post("/feedback", json=[{"run_id": "run_1", "name": "score", "value": place / 10} for place in range(9)])
    assert [grade.value for grade in grades_of(store, "run_1")] == [0.8]


def test_too_many_at_once_are_refused(client):
    assert client.post("/feedback", json=[{}] * 1001).status_code == 400


def test_the_address_can_say_the_run(client):
    given = give(client, path="/runs/run_1/feedback", name="accepted", value=True)
    assert given["run_id"] == "run_1"
    assert [each["id"] for each in client.get("/runs/run_1/feedback").json()["data"]] == [given["id"]]
    give(client, 400, path="/runs/run_1/feedback", run_id="run_2", name="accepted", value=True)
    give(client, 400, path="/runs/run_1/feedback", call_id="call_b", name="accepted", value=True)


def test_feedback_of_a_run_is_shown_with_that_of_its_calls(client):
    give(client, run_id="run_2", value="of the run")
    give(client, call_id="call_c", value="of the call")
    shown = client.get("/feedback", params={"run_id": "run_2"}).json()["data"]
    assert [(each["value"], each["call_id"]) for each in shown] == [("of the run", None), ("of the call", "call_c")]
    assert [each["value"] for each in client.get("/feedback?call_id=call_c").json()["data"]] == ["of the call"]
    assert client.get("/feedback").status_code == 400


def test_an_unknown_run_or_call_is_not_found(client, store):
    give(client, 404, run_id="run_9", name="accepted", value=True)
    give(client, 404, call_id=new_id("call"), name="accepted", value=True)
    give(client, 404, value={"chosen": "call_a", "rejected": "call_z"})
    assert store.select(Feedback) == []


def test_feedback_waits_for_a_call_that_is_on_its_way(client, store, lag):
    lag.written = 200

    def arrive():
        store.add(call("call_late", "run_late"))
        lag.stored = 200

    timer = threading.Timer(0.2, arrive)
    timer.start()
    given = give(client, call_id="call_late", name="accepted", value=True)
    timer.join()
    assert given["grades"] == "run_late"


def test_feedback_may_follow_an_answer_at_once(tmp_path):
    where = tmp_path / "doorstep.db"
    recorder = Recorder(where, tmp_path, PriceSettings())
    with (
        Store.open(where) as store,
        TestClient(Starlette(routes=routes(store, recorder, Keys(tmp_path).who))) as client,
    ):
        recorder.put(capture(7))
        given = give(client, call_id="call_0007", name="accepted", value=True)
        give(client, 404, call_id="call_0008", name="accepted", value=True)
        recorder.close()
    assert given["grades"] == "run_1"


def test_an_answer_of_the_server_names_the_call_that_feedback_is_about(address, client_of_run, data):
    answer = client_of_run.chat.completions.with_raw_response.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}]
    )
    body = {"call_id": answer.headers["x-doorstep-call-id"], "name": "accepted", "value": True}
    given = httpx.post(f"{address}/runs/run_1/feedback", json=body, trust_env=False)
    assert (given.status_code, given.json()["grades"]) == (200, "run_1")
    shown = httpx.get(f"{address}/feedback?run_id=run_1", trust_env=False).json()["data"]
    assert [each["id"] for each in shown] == [given.json()["id"]]


def test_while_the_store_is_away_an_id_of_ours_is_believed(client, store, lag, monkeypatch):
    monkeypatch.setattr(feedback, "WAIT_S", 0.1)
    lag.written = 200
    give(client, 404, call_id="call_made_up", name="accepted", value=True)
    give(client, call_id=new_id("call"), name="accepted", value=True)
    give(client, run_id="my-run", name="accepted", value=True)
    assert [grade.run_id for grade in store.select(Grade)] == ["my-run"]


def test_a_viewer_reads_and_a_member_gives(client, store, tmp_path):
    keys = Keys(tmp_path)
    member, viewer = (keys.create(Terms(name=role, role=role)) for role in (Role.MEMBER, Role.VIEWER))
    client.headers["x-api-key"] = member[1]
    wait_for_keys(client)
    given = give(client, run_id="run_1", name="accepted", value=True)
    assert store.get(Feedback, given["id"]).key_id == member[0].key_id
    client.headers["x-api-key"] = viewer[1]
    give(client, 403, run_id="run_1", name="accepted", value=True)
    assert client.get("/feedback?run_id=run_1").status_code == 200


def wait_for_keys(client):
    """A server looks at its keys from time to time."""
    pause = threading.Event()
    while client.get("/feedback?run_id=run_1", headers={"x-api-key": "none"}).status_code != 401:
        pause.wait(0.02)


def test_without_a_key_that_counts_nothing_is_said_or_shown(client, tmp_path):
    Keys(tmp_path).create(Terms(name="somebody"))
    wait_for_keys(client)
    give(client, 401, run_id="run_1", name="accepted", value=True)
    assert client.get("/feedback?run_id=run_1").status_code == 401


def test_two_keys_may_use_the_same_id(client, store, tmp_path):
    keys = Keys(tmp_path)
    secrets = [keys.create(Terms(name=str(number)))[1] for number in range(2)]
    wait_for_keys(client)
    for secret in secrets:
        client.headers["x-api-key"] = secret
        give(client, id="1", run_id="run_1", value=f"of {secret}")
    assert len(store.select(Feedback)) == 2
