"""Deletion by customer: the content goes, sums and decisions stay, and the adapters are named."""

import pytest

from doorstep import ids
from doorstep.store import Store
from doorstep.types import (
    Attempt,
    Call,
    DatasetItem,
    Feedback,
    GradeSource,
    Job,
    JobState,
    ModelVersion,
    Node,
    Run,
    Split,
    TokenSpan,
)

SHARED, OWN = b"You are the order desk.", b"Dear Ms Miller, ..."


@pytest.fixture
def filled(store, make_run, make_span) -> Store:
    for customer in ("acme", "other"):
        run_id = f"run_{customer}"
        store.add(
            make_run(run_id, customer=customer, output={"for": customer}, error="said acme"),
            _call(run_id, ids.digest(OWN) if customer == "acme" else None),
            Node(
                node_id=f"n_{customer}",
                run_id=run_id,
                parent_id=None,
                role="system",
                content_digest=ids.digest(SHARED),
                sampled=False,
            ),
            make_span(f"s_{customer}", 0, [1, 2], run_id=run_id),
            blobs={ids.digest(OWN): OWN, ids.digest(SHARED): SHARED},
        )
    return store


def _call(run_id: str | None, request: str | None, **changes) -> Call:
    values = {
        "call_id": f"call_{run_id}",
        "run_id": run_id,
        "dialect": "openai.chat",
        "requested_model": "tiny",
        "served_model": "tiny",
        "provider": "local",
        "started_us": 1,
        "ended_us": 2,
        "cost_microusd": 7,
        "request_digest": request,
    }
    return Call(**(values | changes))


def _model(name: str, dataset_id: str, parent: str | None = None) -> ModelVersion:
    return ModelVersion(
        model_id=name,
        workflow="orders",
        variant="rl",
        base="tiny",
        base_digest="b",
        path=f"tinker://{name}",
        adapter_digest="a",
        recipe={},
        dataset_id=dataset_id,
        parent=parent,
        created_us=1,
    )


def test_content_goes_and_numbers_stay(filled):
    filled.delete_customer("acme")
    run = filled.get(Run, "run_acme")
    assert (run.output, run.error, run.customer, run.task_digest) == (None, None, None, "d1")
    assert filled.get(TokenSpan, "s_acme").ids == b""
    assert filled.get(Call, "call_run_acme").cost_microusd == 7
    assert filled.blob(ids.digest(OWN)) is None


def test_nothing_of_it_is_left_in_the_file(make_run, tmp_path):
    with Store.open(tmp_path / "doorstep.db") as store:
        store.add(make_run(customer="acme", output="a very private sentence. " * 1000))
        store.delete_customer("acme")
    assert b"a very private sentence" not in (tmp_path / "doorstep.db").read_bytes()


def test_others_keep_theirs(filled):
    before = (filled.get(Run, "run_other"), filled.get(TokenSpan, "s_other"))
    filled.delete_customer("acme")
    assert (filled.get(Run, "run_other"), filled.get(TokenSpan, "s_other")) == before
    assert filled.blob(ids.digest(SHARED)) == SHARED


def test_a_replay_does_not_bring_it_back(filled):
    run = filled.get(Run, "run_acme")
    filled.delete_customer("acme")
    filled.add(run)
    assert filled.get(Run, "run_acme").output is None
    assert filled.delete_customer("acme").runs == 0


def test_adapters_that_learned_it_are_named_with_their_children(filled):
    for dataset_id, customer, split in (
        ("ds1", "acme", Split.TRAIN),
        ("ds2", "acme", Split.HELD_OUT),
        ("ds3", "other", Split.TRAIN),
    ):
        filled.add(
            DatasetItem(
                dataset_id=dataset_id, task_id="t", task_digest="d", split=split, cluster="c", customer=customer
            )
        )
    filled.add(_model("m1", "ds1"), _model("m2", "ds2"), _model("m3", "ds3"), _model("m4", "ds3", parent="m1"))
    assert filled.delete_customer("acme").adapters == ["tinker://m1", "tinker://m4"]


def test_a_call_outside_any_run_is_the_customers_too(filled):
    body = b"call me at 555"
    filled.add(_call(None, ids.digest(body), call_id="lone", customer="acme"), blobs={ids.digest(body): body})
    assert filled.delete_customer("acme").calls == 2
    call = filled.get(Call, "lone")
    assert (call.customer, call.request_digest, call.cost_microusd) == (None, None, 7)
    assert filled.blob(ids.digest(body)) is None


def test_a_run_with_a_call_of_the_customer_is_the_customers(store, make_run, make_span):
    store.add(make_run(output="secret"), _call("run_1", None, customer="acme"), make_span("s", 0, [1]))
    store.delete_customer("acme")
    assert store.get(Run, "run_1").output is None


def test_feedback_tries_and_jobs_go_with_their_call(filled):
    call_id = "call_run_acme"
    filled.add(
        Feedback(
            feedback_id="f", at_us=1, run_id=None, call_id=call_id, kind="comment", name="note", value="Ms Miller",
            source=GradeSource.HUMAN,
        ),
        Attempt(
            attempt_id="a", call_id=call_id, provider="p", model="m", status_code=400, error="Ms Miller", started_us=1,
            ended_us=2,
        ),
        Job(job_id="j", kind="video", created_us=1, call_id=call_id, provider="p", model="m", request={"prompt": "x"}),
        JobState(state_id="s", job_id="j", at_us=2, status="completed", artefact="videos/j.mp4"),
    )  # fmt: skip
    assert filled.delete_customer("acme").artefacts == ["videos/j.mp4"]
    assert (filled.get(Feedback, "f").value, filled.get(Attempt, "a").error) == (None, None)
    assert (filled.get(Job, "j").request, filled.get(JobState, "s").artefact) == ({}, None)


def test_what_a_key_keeps_too_long_is_forgotten(store, make_span):
    bodies = {ids.digest(body): body for body in (b"old", b"new", b"said")}
    old, new, said = bodies
    store.add(
        _call("run_1", old, key_id="k", customer="acme", started_us=100),
        _call("run_2", new, key_id="k", started_us=300),
        make_span("s", 0, [1], call_id="call_run_1"),
        Node(node_id="n", run_id="run_1", parent_id=None, role="user", content_digest=said, sampled=False),
        blobs=bodies,
    )
    assert store.expire(200, "other").calls == 0
    assert store.expire(200, "k").calls == 1
    assert [store.blob(digest) for digest in bodies] == [None, b"new", None]
    assert (store.get(Call, "call_run_1").customer, store.get(TokenSpan, "s").ids) == ("acme", b"")
    assert store.expire(200, "k").calls == 0


def test_messages_stay_as_long_as_a_call_of_their_run(store):
    said = ids.digest(b"said")
    store.add(
        _call("run_1", None, call_id="old", key_id="k", started_us=100, response_digest="x"),
        _call("run_1", None, call_id="new", key_id="k", started_us=300, response_digest="y"),
        Node(node_id="n", run_id="run_1", parent_id=None, role="user", content_digest=said, sampled=False),
        blobs={said: b"said"},
    )
    store.expire(200, "k")
    assert store.blob(said) == b"said"
    store.expire(400, "k")
    assert store.blob(said) is None
