"""What a restart finds of the promises before it: the journal alone, and the service through its addresses."""

import zlib

import httpx
import msgspec
import pytest
from scripted_engine import ScriptedEngine
from training_door import KEY, Door, application

from doorstep.errors import StoreError
from doorstep.training import journal as journals
from doorstep.training.journal import Accepted, Dropped, Ended, Forgotten, Journal
from doorstep.training.promises import Answer, Promises
from doorstep.training.service import Service


def accepted(name):
    return Accepted(name, "me", "optim_step")


def ended(name):
    return Ended(name, b"body of " + name.encode(), "application/json")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "journal"


def written(file, *records):
    journal = Journal(file)
    for record in records:
        journal.write(record)
    journal.close()
    return file


def test_what_was_written_is_read_again(file):
    written(file, accepted("a"), ended("a"), accepted("b"))
    assert Journal(file).past == {"a": (accepted("a"), ended("a")), "b": (accepted("b"), None)}


@pytest.mark.parametrize("cut", [1, 7, 9, 20])
def test_a_record_that_was_cut_off_hides_none_before_it(file, cut):
    written(file, accepted("a"), ended("a"), ended("a"))
    file.write_bytes(file.read_bytes()[:-cut])
    assert Journal(file).past["a"][1] == ended("a")


def test_what_is_damaged_ends_what_is_read(file):
    written(file, accepted("a"), ended("a"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert Journal(file).past == {"a": (accepted("a"), None)}


def test_what_nobody_asks_for_again_is_left_out(file):
    written(file, accepted("a:1"), accepted("b:1"), accepted("b:2"), Dropped("b:1"), Forgotten("a:"))
    assert set(Journal(file).past) == {"b:2"}
    assert len(file.read_bytes()) < 60  # the rest is not in the file any more either


def test_a_full_disk_leaves_no_half_record(file, monkeypatch):
    journal = Journal(file)
    journal.write(accepted("a"))
    write = journals.os.write
    monkeypatch.setattr(journals.os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    journal.write(accepted("b"))
    monkeypatch.undo()
    journal.write(accepted("c"))
    assert set(Journal(file).past) == {"a", "c"}


def test_an_answer_to_what_was_not_written_down_is_left_out(file):
    written(file, ended("a"), accepted("b"))
    assert set(Journal(file).past) == {"b"}


def test_a_record_of_a_newer_version_is_passed_over(file):
    written(file, accepted("a"))
    newer = msgspec.msgpack.encode(["renamed", "a", "b"])
    head = len(newer).to_bytes(4, "little") + zlib.crc32(newer).to_bytes(4, "little")
    file.write_bytes(head + newer + file.read_bytes())
    assert set(Journal(file).past) == {"a"}


def test_a_journal_that_cannot_be_written_anew_grows_on(file):
    journal = Journal(file)
    journal.write(accepted("a"))
    file.with_suffix(".new").mkdir()
    journal.compact([])
    journal.write(accepted("b"))
    file.with_suffix(".new").rmdir()
    assert set(Journal(file).past) == {"a", "b"}


def test_a_folder_in_its_place_is_said(file):
    file.mkdir()
    with pytest.raises(StoreError, match=r"journal cannot be read and written \(Is a directory\)"):
        Journal(file)


async def test_a_large_journal_is_written_anew(file, monkeypatch):
    monkeypatch.setattr(journals, "COMPACT_BYTES", 10_000)
    promises = Promises(Journal(file), keep_bytes=3000)
    for number in range(30):
        promises.open(f"s:{number}", "me", "optim_step")(Answer(b"x" * 1000))
        promises.fetched(f"s:{number}")
    assert file.stat().st_size < 12_000
    promises.close()
    assert set(Journal(file).past) == {"s:27", "s:28", "s:29"}


async def restarted(door, tmp_path, **info):
    """Start a service on the same folder, the first one having had no chance to put anything in order."""
    engine = ScriptedEngine(str(tmp_path))
    engine._info = msgspec.structs.replace(engine._info, **info)
    service = await Service.start(engine, tmp_path)
    transport = httpx.ASGITransport(application(service))
    http = httpx.AsyncClient(transport=transport, base_url="http://door/api/v1", headers={"X-API-Key": KEY})
    return Door(service, engine, http)


async def optim(door, model, seq, status=200):
    return await door.post("/optim_step", status, model_id=model, seq_id=seq, adam_params={})


async def test_finished_operations_answer_as_before_a_restart(door, tmp_path):
    model = await door.model()
    done = (await optim(door, model, 1))["request_id"]
    lost = (await optim(door, model, 3))["request_id"]  # waits for number 2
    before = await door.fetch(done)
    again = await restarted(door, tmp_path)
    assert (await again.fetch(done)).content == before.content
    answer = await again.fetch(lost)
    assert (answer.status_code, "accepted, but the server was restarted" in answer.text) == (410, True)
    assert (await optim(again, model, 1))["request_id"] == done  # a retry is the same operation still


async def test_a_model_that_was_lost_says_where_to_go_on(door, tmp_path):
    session = await door.session()
    saved, unsaved = await door.model(session, 0), await door.model(session, 1)
    for seq, name in enumerate(("one", "two"), 1):
        made = await door.post("/save_weights", model_id=saved, seq_id=seq, path=name)
        await door.fetch(made["request_id"])
    again = await restarted(door, tmp_path)
    assert f"tinker://{saved}/weights/two" in (await optim(again, saved, 3, 404))["detail"]
    assert "it was never saved" in (await optim(again, unsaved, 1, 404))["detail"]


async def test_lost_samples_are_told_in_their_feed(door, tmp_path):
    session = await door.session()
    made = await door.post("/create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny")
    sampler = made["sampling_session_id"]
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1]}]}
    door.engine.gate.clear()
    fields = {"sampling_session_id": sampler, "prompt": prompt, "sampling_params": {"max_tokens": 1}}
    lost = (await door.post("/asample", seq_id=0, **fields))["request_id"]
    cursor = 1 << 40  # of a client that has been here for long
    again = await restarted(door, tmp_path)
    target = {"sampling_session_id": sampler}
    told = await again.post("/retrieve_futures", target=target, prev_cursor=cursor, timeout=1)
    assert told["completions"] == [{"state": "failed", "request_id": lost}]
    assert (await again.fetch(lost)).status_code == 410
    assert (await again.post("/asample", seq_id=1, **fields))["sample_sequence_ids"]


async def test_weights_do_not_go_on_another_base(door, tmp_path):
    model = await door.model()
    made = await door.post("/save_weights", model_id=model, seq_id=1, path="one")
    path = (await door.fetch(made["request_id"])).json()["path"]
    again = await restarted(door, tmp_path, digest="e" * 64)
    fields = {"session_id": await again.session(), "model_seq_id": 0, "path": path, "optimizer": True}
    assert "was trained on other weights, tiny" in (await again.post("/load_weights", 422, **fields))["detail"]
