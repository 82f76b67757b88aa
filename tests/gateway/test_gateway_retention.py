"""Calls of a key with a retention are forgotten after that time, and their files with them."""

from captures import capture

from doorstep import ids
from doorstep.config import PriceSettings
from doorstep.gateway.keys import Keys, Terms
from doorstep.gateway.media.artefacts import Artefacts
from doorstep.gateway.recorder import Recorder
from doorstep.gateway.retention import DAY_US, Retention
from doorstep.store import Store
from doorstep.types import Call, Job, JobState


async def test_old_calls_of_a_key_are_forgotten_with_their_files(where, data):
    key, _ = Keys(data).create(Terms(name="inbox", retention_days=30))
    now, name = ids.now_us(), await Artefacts(data).put_bytes(b"film", "mp4")
    recorder = Recorder(where, data, PriceSettings())
    recorder.put(capture(0, key_id=key.key_id, started_us=now - 31 * DAY_US))
    recorder.put(capture(1, key_id=key.key_id, started_us=now - 29 * DAY_US))
    recorder.put(capture(2, key_id="key_other", started_us=now - 31 * DAY_US))
    recorder.close()
    with Store.open(where) as store:
        job = Job(job_id="j", kind="video", created_us=1, call_id="call_0000", provider="p", model="m", request={})
        store.add(job, JobState(state_id="s", job_id="j", at_us=2, status="completed", artefact=name))
        Retention(data).keep(store)
        assert [call.request_digest is None for call in store.select(Call)] == [True, False, False]
    assert not Artefacts(data).path(name).exists()


def test_without_keys_nothing_is_forgotten(where, data):
    with Store.open(where) as store:
        Retention(data).keep(store)
        assert store.select(Call) == []


def test_a_damaged_file_of_keys_stops_nothing(where, data, caplog):
    data.mkdir()
    (data / "keys.json").write_text("[")
    with Store.open(where) as store:
        Retention(data).keep(store)
    assert "not forgotten" in caplog.text
