"""Two tenants on one service: what is the other's is not there, whatever one asks."""

from collections.abc import AsyncIterator

import httpx
import pytest
from scripted_engine import ScriptedEngine
from training_door import Door, application

from doorstep.config import TrainingSettings
from doorstep.training.codec import schema
from doorstep.training.service import Service


async def started(tmp_path, **limits) -> Service:
    engine = ScriptedEngine(str(tmp_path))
    return await Service.start(engine, tmp_path, lambda headers: headers.get("x-api-key"), TrainingSettings(**limits))


def door(service, name) -> Door:
    transport = httpx.ASGITransport(application(service))
    http = httpx.AsyncClient(transport=transport, base_url="http://door/api/v1", headers={"X-API-Key": name})
    return Door(service, service._engine, http)


@pytest.fixture
async def service(tmp_path) -> AsyncIterator[Service]:
    made = await started(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def anns(service):
    """Return what Ann has: a session, a model, a saved state, a sampling session and a promise."""
    ann = door(service, "ann")
    session = await ann.session()
    model = await ann.model(session)
    saved = await ann.fetch((await ann.post("/save_weights", model_id=model, seq_id=1, path="one"))["request_id"])
    fields = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"}
    sampler = (await ann.post("/create_sampling_session", **fields))["sampling_session_id"]
    return {"session_id": session, "model_id": model, "path": saved.json()["path"], "sampler": sampler}


def asked(session_id, model_id, path, sampler, mine):
    """Return requests that name Ann's things; ``mine`` is a session of one's own."""
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1]}]}
    batch = schema().ForwardBackwardRequest(model_id=model_id, seq_id=2, loss_fn="cross_entropy")
    return {
        "/session_heartbeat": {"session_id": session_id},
        f"/sessions/{session_id}/finish": {"reason": {"type": "success"}},
        "/create_model": {"session_id": session_id, "model_seq_id": 1, "base_model": "tiny"},
        "/get_info": {"model_id": model_id},
        "/forward_backward": batch.SerializeToString(),
        "/optim_step": {"model_id": model_id, "seq_id": 2},
        "/save_weights": {"model_id": model_id, "seq_id": 2, "path": "two"},
        "/save_weights_for_sampler": {"model_id": model_id, "seq_id": 2, "path": "two"},
        "/save_weights_external": {"model_id": model_id, "seq_id": 2, "path": "two"},
        "/load_weights": {"session_id": mine, "model_seq_id": 0, "path": path, "optimizer": True},
        "/create_sampling_session": {"session_id": mine, "sampling_session_seq_id": 0, "model_path": path},
        "/join_sampling_session": {"sampling_session_id": sampler},
        "/asample": {"sampling_session_id": sampler, "seq_id": 0, "prompt": prompt, "sampling_params": {}},
        "/create_custom_loss": {
            "session_id": session_id,
            "custom_loss_seq_id": 0,
            "name": "x",
            "inputs": [],
            "graph": {},
        },
        "/weights_info": {"tinker_path": path},
    }


async def test_what_is_anothers_is_not_there(service, anns):
    bob = door(service, "bob")
    calls = len(bob.engine.calls)
    for address, fields in asked(**anns, mine=await bob.session()).items():
        body = {"content": fields} if isinstance(fields, bytes) else {"json": fields}
        answer = await bob.http.post(address, **body)
        assert (answer.status_code, "there is no" in answer.text) == (404, True), (address, answer.text)
    assert (await bob.http.get(f"/samplers/{anns['sampler']}")).status_code == 404
    assert len(bob.engine.calls) == calls


async def test_ann_may_do_all_that(service, anns):
    ann = door(service, "ann")
    requests = asked(**anns, mine=await ann.session())
    del requests[f"/sessions/{anns['session_id']}/finish"]
    for address, fields in requests.items():
        body = {"content": fields} if isinstance(fields, bytes) else {"json": fields}
        assert (await ann.http.post(address, **body)).status_code == 200, address


async def test_a_foreign_path_does_not_load_into_a_live_model(service, anns):
    bob = door(service, "bob")
    model = await bob.model()
    made = await bob.post("/load_weights", model_id=model, seq_id=1, path=anns["path"], optimizer=True)
    failed = (await bob.fetch(made["request_id"])).json()
    assert failed == {"error": f"there is no checkpoint {anns['path']} here", "category": "user"}


async def test_promises_of_another_are_lost_ones(service, anns):
    bob = door(service, "bob")
    request_id = f"{anns['model_id']}:1"
    assert (await bob.fetch(request_id)).status_code == 410
    await bob.http.post("/cancel_future", json={"request_id": request_id})
    assert (await door(service, "ann").fetch(request_id)).status_code == 200


async def test_models_are_limited_by_tenant(tmp_path):
    service = await started(tmp_path, max_models=1)
    ann, bob = door(service, "ann"), door(service, "bob")
    session = await ann.session()
    await ann.model(session)
    answer = await ann.post("/create_model", 403, session_id=session, model_seq_id=1, base_model="tiny")
    assert answer["code"] == "training_models"
    assert await bob.model()
    await service.close()


async def test_tokens_are_limited_by_tenant_and_day(tmp_path):
    service = await started(tmp_path, max_tokens_per_day=5)
    ann = door(service, "ann")
    session = await ann.session()
    fields = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"}
    sampler = (await ann.post("/create_sampling_session", **fields))["sampling_session_id"]
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}
    wanted = {"sampling_session_id": sampler, "prompt": prompt, "sampling_params": {"max_tokens": 1}}
    await ann.fetch((await ann.post("/asample", seq_id=0, **wanted))["request_id"])
    assert "beyond your 5 a day" in (await ann.post("/asample", 403, seq_id=1, **wanted))["detail"]
    await service.close()
