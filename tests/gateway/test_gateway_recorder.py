"""The recorder: nothing that was kept is lost, and nothing that fails here reaches the caller."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from captures import capture
from gateway_parts import wait_for
from postgres_server import DATABASES

from doorstep.config import PriceSettings
from doorstep.gateway import recorder as recorder_module
from doorstep.gateway.chat import Sampled, Trace
from doorstep.gateway.recorder import Recorder
from doorstep.gateway.segments import Writer
from doorstep.store import Store
from doorstep.store.views import gaps_of
from doorstep.types import Call, Node, TokenSpan

WRITER = """
import sys
from pathlib import Path
from captures import capture
from doorstep.config import PriceSettings
from doorstep.gateway.recorder import Recorder

recorder = Recorder(sys.argv[1], Path(sys.argv[2]), PriceSettings())
for number in range(1_000_000):
    recorder.put(capture(number))
    print(number, flush=True)
"""


@pytest.fixture
def folder(data) -> Path:
    return data / "captures"


@pytest.fixture
def store(where):
    with Store.open(where) as opened:
        yield opened


def recorder_on(where, folder, **changes):
    return Recorder(where, folder.parent, PriceSettings(), **changes)


def record(where, folder, *captures) -> Recorder:
    """Have captures recorded, and all of it in the store."""
    recorder = recorder_on(where, folder)
    for one in captures:
        recorder.put(one)
    recorder.close()
    return recorder


def full(*_arguments):
    raise OSError(28, "No space left on device")


def test_calls_come_into_the_store_and_segments_go(where, store, folder):
    recorder = record(where, folder, *map(capture, range(100)))
    assert len(store.select(Call)) == 100
    assert len(store.select(TokenSpan)) == 200
    assert (list(folder.iterdir()), recorder.backlog) == ([], 0)


def test_segments_change_when_they_are_full(where, store, folder, monkeypatch):
    monkeypatch.setattr(recorder_module, "SEGMENT_BYTES", 2_000)
    recorder = recorder_on(where, folder)
    for number in range(100):
        recorder.put(capture(number))
    wait_for(lambda: recorder.backlog == 0)
    wait_for(lambda: len(list(folder.iterdir())) == 1)
    recorder.close()
    assert len(store.select(Call)) == 100


def test_what_a_killed_process_left_is_carried_over_once(where, store, folder):
    record(where, folder, capture(0))  # its commit came before the kill
    killed = Writer(folder, "seg_killed")
    for number in range(3):
        killed.append(capture(number))
    killed.close()
    with next(folder.iterdir()).open("ab") as file:
        file.write(b"\x00\x00\x10\x00half a fra")
    record(where, folder)
    assert [call.call_id for call in store.select(Call)] == ["call_0000", "call_0001", "call_0002"]
    assert list(folder.iterdir()) == []


def test_the_segment_of_a_living_process_is_left_alone(where, store, folder):
    folder.mkdir(parents=True)
    living = Writer(folder, "seg_living")
    living.append(capture())
    record(where, folder)
    assert store.select(Call) == []
    assert len(list(folder.iterdir())) == 1
    living.close()


@pytest.mark.parametrize("answered", [1, 700])
def test_kill_nine_loses_nothing_that_was_kept(where, folder, answered):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    command = [sys.executable, "-c", WRITER, where, str(folder.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        kept = [process.stdout.readline() for _ in range(answered)]
        process.kill()
        kept += process.stdout.readlines()
    recorder = recorder_on(where, folder)
    with Store.open(where) as store:
        wait_for(lambda: len(store.known(Call, {f"call_{int(number):04}" for number in kept})) == len(kept))
    recorder.close()
    assert list(folder.iterdir()) == []


def test_a_compactor_that_dies_is_replaced(where, store, folder):
    recorder = recorder_on(where, folder)
    recorder.put(capture(0))
    os.kill(recorder._compactor.pid, signal.SIGKILL)
    recorder.put(capture(1))
    wait_for(lambda: recorder.backlog == 0)
    recorder.close()
    assert len(store.select(Call)) == 2


def test_a_backlog_that_is_too_long_is_dropped_and_counted(where, store, folder):
    recorder = recorder_on(where, folder, backlog_bytes=1)
    for number in range(50):
        recorder.put(capture(number))
    recorder.close()
    calls = store.select(Call)
    assert recorder.dropped == 49
    assert [call.gaps for call in calls if call.gaps] == [["dropped_call", "no_token_ids", "no_usage", "no_price"]]
    assert gaps_of(store, "run_1") == ["dropped_call", "no_price", "no_token_ids", "no_usage"]


def test_a_full_disk_is_counted_and_marks_the_run(where, store, folder, monkeypatch):
    recorder = recorder_on(where, folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        recorder.put(capture(0))
    recorder.put(capture(1, run_id="run_2"))
    recorder.close()
    assert recorder.dropped == 1
    assert {call.call_id: call.request_digest is None for call in store.select(Call)} == {
        "call_0000": True,
        "call_0001": False,
    }


def test_a_store_that_is_away_for_a_while_loses_nothing(folder, tmp_path):
    path = tmp_path / "doorstep.db"
    path.write_bytes(b"This is a letter, not a database. " * 100)
    recorder = recorder_on(path, folder)
    recorder.put(capture())
    wait_for(lambda: recorder.away_s > 0)
    path.unlink()
    wait_for(lambda: recorder.backlog == 0)
    recorder.close()
    with Store.open(path) as store:
        assert len(store.select(Call)) == 1
    assert (recorder.dropped, recorder.refused, recorder.away_s) == (0, 0, 0)


if "postgresql" in DATABASES:

    def test_a_database_that_is_stopped_and_started_loses_nothing(postgres, folder):
        where = postgres.database()
        recorder = recorder_on(where, folder)
        recorder.put(capture(0))
        wait_for(lambda: recorder.backlog == 0)
        postgres.stop()
        recorder.put(capture(1))
        wait_for(lambda: recorder.away_s > 0)
        postgres.start()
        recorder.close()
        with Store.open(where) as store:
            assert len(store.select(Call)) == 2


def test_what_the_store_does_not_take_waits_for_the_next_start(folder, tmp_path):
    path = tmp_path / "doorstep.db"
    path.write_bytes(b"This is a letter, not a database. " * 100)
    assert record(path, folder, capture()).backlog > 0
    path.unlink()
    record(path, folder)
    with Store.open(path) as store:
        assert len(store.select(Call)) == 1


def test_a_call_that_is_refused_does_not_keep_others_out(where, store, folder):
    bad = Trace(prompt=[1], samples=[Sampled([3], [])], policy="p", tokenizer_digest="t")
    recorder = record(where, folder, capture(0), capture(1, trace=bad), capture(2, dialect="none"), capture(3))
    assert [call.call_id for call in store.select(Call)] == ["call_0000", "call_0003"]
    assert (recorder.refused, recorder.dropped) == (2, 0)


def test_a_damaged_segment_is_kept_aside(where, store, folder):
    folder.mkdir(parents=True)
    damaged = Writer(folder, "seg_damaged")
    damaged.append(capture())
    damaged.close()
    with next(folder.iterdir()).open("ab") as file:
        file.write(bytes(100))
    record(where, folder)
    assert len(store.select(Call)) == 1
    assert [file.suffix for file in folder.iterdir()] == [".damaged"]


def test_a_frame_that_is_larger_than_a_batch_is_taken(where, store, folder):
    record(where, folder, capture(0), capture(1, request=b" " * 3_000_000), capture(2))
    assert len(store.select(Call)) == 3


def test_a_repeated_message_is_one_row(where, store, folder):
    record(where, folder, *map(capture, range(3)))
    nodes = store.select(Node)
    assert sorted((node.role, node.call_id) for node in nodes) == [("assistant", "call_0000"), ("user", None)]


def test_a_call_outside_a_run_has_tokens_and_no_messages(where, store, folder):
    record(where, folder, capture(run_id=None))
    assert len(store.select(TokenSpan)) == 2
    assert store.select(Node) == []
