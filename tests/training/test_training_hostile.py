"""What a client can send, or a full disk do, to harm a server and its other tenants; it does not."""

import asyncio
import os
import threading
from functools import partial

import httpx
import pyrage
import pytest
import zstandard
from scripted_engine import ScriptedEngine
from training_door import KEY, Door, application

from doorstep import ids
from doorstep.errors import StoreError, UsageError
from doorstep.training import codec, external, promises, registry
from doorstep.training.journal import Journal
from doorstep.training.paths import parse
from doorstep.training.promises import Answer, Promises
from doorstep.training.registry import Registry, SavedCheckpoint, Session
from doorstep.training.service import Service
from doorstep.training.tenants import SAMPLED, Usage

PROMPT = {"chunks": [{"type": "encoded_text", "tokens": [1]}]}
PATH = "tinker://s:train:0/weights/one"


async def sampler(door, session):
    fields = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"}
    return (await door.post("/create_sampling_session", **fields))["sampling_session_id"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"num_samples": 10**12}, "num_samples must be at least 1, and at most 1024"),
        ({"num_samples": 1024, "topk_sample_logprobs": 1000}, "1024 samples of 63 tokens with 1000 choices each"),
        ({"sampling_params": {"stop": list(range(257))}}, "give at most 256, of at most 256 characters each"),
        ({"sampling_params": {"stop": "x" * 257}}, "give at most 256, of at most 256 characters each"),
    ],
)
async def test_more_than_a_server_can_do_is_refused_before_it_begins(door, fields, why):
    sampling = await sampler(door, await door.session())
    asked = {"sampling_session_id": sampling, "seq_id": 0, "prompt": PROMPT, "sampling_params": {}} | fields
    assert why in (await door.post("/asample", 422, **asked))["detail"]


async def test_records_that_would_fill_the_memory_are_refused(door):
    metadata = {"notes": "x" * registry.MAX_RECORD}
    told = await door.post("/create_session", 422, sdk_version="0.38.0", user_metadata=metadata)
    assert "user_metadata and what else is noted take" in told["detail"]
    made = await door.post(
        "/create_model", session_id=await door.session(), model_seq_id=0, base_model="tiny", user_metadata=metadata
    )
    assert (await door.fetch(made["request_id"])).json()["category"] == "user"
    assert door.engine.adapters == {}


async def test_a_session_can_be_finished_twice_at_once(door):
    session = await door.session()
    for number in range(3):
        await door.model(session, number)
    finish = partial(door.post, f"/sessions/{session}/finish", 204, reason={"type": "success"})
    await asyncio.gather(finish(), finish(), finish())
    assert door.engine.adapters == {}


async def test_a_session_that_cannot_be_written_is_let_go_all_the_same(door, monkeypatch):
    session = await door.session()
    await door.model(session)
    monkeypatch.setattr(registry.os, "fsync", _disk_full)
    await door.post(f"/sessions/{session}/finish", 500, reason={"type": "success"})
    assert door.engine.adapters == {}


async def test_a_model_that_cannot_be_written_down_leaves_nothing_in_the_engine(door, monkeypatch):
    session = await door.session()
    monkeypatch.setattr(registry.os, "fsync", _disk_full)
    made = await door.post("/create_model", session_id=session, model_seq_id=0, base_model="tiny")
    assert "No space left" in (await door.fetch(made["request_id"])).text
    assert door.engine.adapters == {}


async def test_a_save_without_its_record_leaves_no_folder(door, tmp_path, monkeypatch):
    model = await door.model()
    monkeypatch.setattr(registry.os, "fsync", _disk_full)
    made = await door.post("/save_weights", model_id=model, seq_id=1, path="one")
    assert "No space left" in (await door.fetch(made["request_id"])).text
    assert list(tmp_path.glob("training/sessions/*/0/weights/*")) == []


async def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_anew(door, monkeypatch):
    model = await door.model()
    path = (await _save_state(door, model, 1))["path"]
    load = door.engine.load

    async def replaced_before(*arguments, **fields):
        monkeypatch.setattr(door.engine, "load", load)
        await _save_state(door, model, 2)
        return await load(*arguments, **fields)

    monkeypatch.setattr(door.engine, "load", replaced_before)
    fields = {"session_id": await door.session(), "model_seq_id": 0, "path": path, "optimizer": True}
    assert (await door.fetch((await door.post("/load_weights", **fields))["request_id"])).json()["path"] == path


async def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error(door):
    sent = []
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    headers = [(b"x-api-key", KEY.encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/create_session",
        "headers": headers,
        "query_string": b"",
    }
    await application(door.service)(scope, receive, send)
    assert sent[0]["status"] == 400


async def test_a_feed_is_told_to_its_owner_alone(tmp_path):
    service = await Service.start(ScriptedEngine(str(tmp_path)), tmp_path, lambda headers: headers.get("x-api-key"))
    ann, bob = (_door(service, name) for name in ("ann", "bob"))
    sampling = await sampler(ann, await ann.session())
    asked = {"sampling_session_id": sampling, "seq_id": 1, "prompt": PROMPT, "sampling_params": {"max_tokens": 1}}
    await ann.fetch((await ann.post("/asample", **asked))["request_id"])
    target = {"sampling_session_id": sampling}
    await bob.post("/retrieve_futures", 404, target=target, prev_cursor=2**62, timeout=0)
    assert len((await ann.post("/retrieve_futures", target=target, timeout=1))["completions"]) == 1
    await service.close()


async def test_what_was_fetched_before_a_restart_does_not_count_as_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(promises, "MAX_OPEN", 2)
    before = Promises(Journal(tmp_path / "journal"))
    for name in ("s:1", "s:2"):
        before.open(name, "me", "asample")(Answer(b"x"))
        before.fetched(name)
    again = Promises(Journal(tmp_path / "journal"))
    assert (await again.wait("s:1", "me", 0)).body == b"x"
    assert again.open("s:3", "me", "asample")
    assert Promises(Journal(tmp_path / "journal")).open("s:4", "me", "asample")  # nor after the file was written anew


@pytest.mark.parametrize("address", ["/sessions?limit=", "/training_runs?offset=", "/files/a/b/c?signature=x&expires="])
async def test_a_number_without_end_is_refused(door, address):
    assert (await door.http.get(address + 5000 * "9")).status_code in (401, 422)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_compressed_body_that_was_cut_off_is_refused(cut):
    message = codec.schema().ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="x" * 500).SerializeToString()
    body = zstandard.compress(message)
    assert codec.parse_forward_backward(body, "zstd").model_id == "m"
    with pytest.raises(UsageError, match="was cut off"):
        codec.parse_forward_backward(body[:-cut], "zstd")


def test_a_record_that_changes_while_it_is_replaced_names_the_new_save(tmp_path, monkeypatch):
    kept = _with_checkpoint(tmp_path)
    reading, replaced = threading.Event(), threading.Event()
    replace = registry.msgspec.structs.replace

    def slowly(*arguments, **fields):
        reading.set()
        replaced.wait(0.2)  # long enough for the save that comes between, if it may
        return replace(*arguments, **fields)

    monkeypatch.setattr(registry.msgspec.structs, "replace", slowly)
    publishing = threading.Thread(target=kept.change_checkpoint, args=(parse(PATH), "ann"), kwargs={"public": True})
    publishing.start()
    reading.wait()
    newest = _save(kept)
    replaced.set()
    publishing.join()
    assert kept.files(kept.checkpoint(parse(PATH), "ann")) == newest


def test_files_that_cannot_be_encrypted_are_told(tmp_path):
    (tmp_path / "adapter").write_text("plain")
    (tmp_path / "adapter.age").mkdir()
    key = pyrage.x25519.Identity.generate().to_public()
    with pytest.raises(StoreError, match="Is a directory"):
        external._encrypt_all(tmp_path, [key])
    assert (tmp_path / "adapter").read_text() == "plain"


def test_usage_that_cannot_be_summed_up_stays_as_it_is(tmp_path, monkeypatch):
    usage = Usage(tmp_path / "usage.jsonl")
    usage.book("me", SAMPLED, 5, 0.1)
    monkeypatch.setattr(os, "fsync", _disk_full)
    Usage(tmp_path / "usage.jsonl").compact()
    assert Usage(tmp_path / "usage.jsonl").tokens_today("me") == 5


async def _save_state(door, model, number):
    made = await door.post("/save_weights", model_id=model, seq_id=number, path="one", overwrite=True)
    return (await door.fetch(made["request_id"])).json()


def _disk_full(*_arguments):
    raise OSError(28, "No space left on device")


def _door(service, name):
    transport = httpx.ASGITransport(application(service))
    http = httpx.AsyncClient(transport=transport, base_url="http://door/api/v1", headers={"X-API-Key": name})
    return Door(service, service._engine, http)


def _with_checkpoint(root):
    kept = Registry(root)
    kept.put_session(Session(session_id="s", owner="ann", created_us=1, sdk_version="1"))
    _save(kept)
    return kept


def _save(kept):
    folder = kept.new_folder(parse(PATH))
    folder.mkdir()
    kept.put_checkpoint(SavedCheckpoint(path=PATH, folder=folder.name, digest="d", size=1, created_us=ids.now_us()))
    return folder
