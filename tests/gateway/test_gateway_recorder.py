"""The recorder: nothing that was kept is lost, and nothing that fails here reaches the caller."""

import os

import pytest
from gateway_parts import wait_for

from doorstep.errors import StoreError
from doorstep.gateway import recorder as recorder_module
from doorstep.gateway.capture import Capture
from doorstep.gateway.chat import Sampled, Trace
from doorstep.gateway.recorder import Recorder
from doorstep.gateway.segments import Segment
from doorstep.store import Store
from doorstep.types import Call, Node, TokenSpan
from doorstep.value.prices import Pricer


def capture(number: int = 0, **changes) -> Capture:
    values = {
        "call_id": f"call_{number:04}",
        "run_id": "run_1",
        "dialect": "openai.chat",
        "requested_model": "tiny",
        "served_model": "tiny",
        "provider": "local",
        "adapter": None,
        "stream": False,
        "started_us": 1_000,
        "first_us": 1_500,
        "ended_us": 2_000,
        "status": 200,
        "error": None,
        "request": b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}',
        "response": b'{"choices":[{"index":0,"message":{"content":"ho"},"finish_reason":"stop"}]}',
        "trace": Trace(prompt=[1, 2], samples=[Sampled([3], [-0.5])], policy="p", tokenizer_digest="t"),
    }
    return Capture(**(values | changes))


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "doorstep.db") as opened:
        yield opened


def recorder_on(store, folder, **changes):
    return Recorder(store, folder, Pricer(lambda _call: 3600.0), **changes)


def test_calls_come_into_the_store_and_segments_go(store, tmp_path):
    recorder = recorder_on(store, tmp_path / "captures")
    for number in range(100):
        recorder.put(capture(number))
    recorder.close()
    assert len(store.select(Call)) == 100
    assert len(store.select(TokenSpan)) == 200
    assert list((tmp_path / "captures").iterdir()) == []


def test_segments_change_when_they_are_full(store, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "SEGMENT_BYTES", 2_000)
    recorder = recorder_on(store, tmp_path / "captures")
    for number in range(100):
        recorder.put(capture(number))
    wait_for(lambda: recorder.backlog == 0)
    wait_for(lambda: len(list((tmp_path / "captures").iterdir())) == 1)
    recorder.close()
    assert len(store.select(Call)) == 100


def test_what_a_killed_process_left_is_carried_over_once(store, tmp_path):
    (tmp_path / "captures").mkdir()
    segment = Segment.create(tmp_path / "captures")
    for number in range(3):
        segment.append(capture(number))
    with segment.path.open("ab") as file:
        file.write(b"\x00\x00\x10\x00half a fra")
    os.close(segment._file)
    already = recorder_on(store, tmp_path / "other")
    already.put(capture(0))  # its commit came before the kill
    already.close()
    recorder_on(store, tmp_path / "captures").close()
    costs = [call.cost_microusd for call in store.select(Call)]
    assert costs == [50_000, None, None]  # the CPU time of the others is not known any more
    assert list((tmp_path / "captures").iterdir()) == []


def test_the_segment_of_a_living_process_is_left_alone(store, tmp_path):
    (tmp_path / "captures").mkdir()
    segment = Segment.create(tmp_path / "captures")
    segment.append(capture())
    recorder_on(store, tmp_path / "captures").close()
    assert store.select(Call) == []
    assert segment.path.exists()
    segment.delete()


def test_a_backlog_that_is_too_long_is_dropped_and_counted(store, tmp_path):
    recorder = recorder_on(store, tmp_path / "captures", backlog_bytes=1)
    for number in range(50):
        recorder.put(capture(number))
    recorder.close()
    assert recorder.dropped > 0
    assert len(store.select(Call)) == 50 - recorder.dropped


def test_a_full_disk_is_counted(store, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    recorder = recorder_on(store, tmp_path / "captures")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        recorder.put(capture(0))
    recorder.put(capture(1))
    recorder.close()
    assert recorder.dropped == 1
    assert [call.call_id for call in store.select(Call)] == ["call_0001"]


def test_a_store_that_is_away_for_a_while_loses_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.01)
    add, failures = store.add, []

    def failing(*records, blobs=None):
        if len(failures) < 6:
            failures.append(1)
            raise StoreError("the disk is full")
        add(*records, blobs=blobs)

    monkeypatch.setattr(store, "add", failing)
    recorder = recorder_on(store, tmp_path / "captures")
    recorder.put(capture())
    wait_for(lambda: store.select(Call))
    recorder.close()
    assert (recorder.dropped, recorder.refused) == (0, 0)


def test_a_call_that_is_refused_does_not_keep_others_out(store, tmp_path):
    recorder = recorder_on(store, tmp_path / "captures")
    recorder.put(capture(0, trace=Trace(prompt=[1], samples=[Sampled([3], [])], policy="p", tokenizer_digest="t")))
    recorder.put(capture(1, request=b"[]"))
    recorder.put(capture(2))
    recorder.close()
    assert [call.call_id for call in store.select(Call)] == ["call_0002"]
    assert (recorder.refused, recorder.dropped) == (2, 0)


def test_a_damaged_segment_is_said(store, tmp_path):
    (tmp_path / "captures").mkdir()
    (tmp_path / "captures" / "seg_1.segment").write_bytes(b"\x00\x00\x00\x02ab")
    with pytest.raises(StoreError, match="Move it away"):
        recorder_on(store, tmp_path / "captures")


def test_a_repeated_message_is_one_row(store, tmp_path):
    recorder = recorder_on(store, tmp_path / "captures")
    for number in range(3):
        recorder.put(capture(number))
    recorder.close()
    nodes = store.select(Node)
    assert sorted((node.role, node.call_id) for node in nodes) == [("assistant", "call_0000"), ("user", None)]


def test_a_call_outside_a_run_has_tokens_and_no_messages(store, tmp_path):
    recorder = recorder_on(store, tmp_path / "captures")
    recorder.put(capture(run_id=None))
    recorder.close()
    assert len(store.select(TokenSpan)) == 2
    assert store.select(Node) == []
