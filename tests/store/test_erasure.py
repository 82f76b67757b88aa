"""Deletion by customer: the content goes, sums and decisions stay, and the adapters are named."""

import pytest

from doorstep import ids
from doorstep.store import Store
from doorstep.types import Call, DatasetItem, ModelVersion, Node, Run, Split, TokenSpan

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


def _call(run_id: str, request: str | None) -> Call:
    return Call(
        call_id=f"call_{run_id}",
        run_id=run_id,
        dialect="openai.chat",
        requested_model="tiny",
        served_model="tiny",
        provider="local",
        started_us=1,
        ended_us=2,
        cost_microusd=7,
        request_digest=request,
    )


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


def test_nothing_of_it_is_left_in_the_file(store, make_run, tmp_path):
    store.add(make_run(customer="acme", output="a very private sentence. " * 1000))
    store.delete_customer("acme")
    store.close()
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
    assert filled.delete_customer("acme") == []


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
    assert filled.delete_customer("acme") == ["tinker://m1", "tinker://m4"]
