"""Which adapters the engine holds, and what samples from which: snapshots, inflight weights, checkpoints, the base."""

import asyncio

import pytest
from scripted_engine import ScriptedEngine

from doorstep.engine.api import LoraSpec
from doorstep.errors import EngineError
from doorstep.training.adapters import SamplerAdapters


@pytest.fixture
def engine(tmp_path):
    return ScriptedEngine(str(tmp_path))


async def saved(engine, folder, *names):
    for name in names:
        await engine.create_adapter(name, LoraSpec())
        await engine.save(name, str(folder / name), optimizer=False)
        await engine.drop_adapter(name)


async def use(adapters, name, folder):
    async with adapters.hold(name, folder / name):
        pass
    await adapters.close()


async def test_a_snapshot_is_written_only_when_it_makes_room(engine, tmp_path):
    adapters = SamplerAdapters(engine, limit=2)
    await engine.create_adapter("model", LoraSpec())
    for name in ("one", "two"):
        await adapters.adopt(name, engine.copy_adapter("model", name), tmp_path / name)
    await adapters.close()
    assert not [call for call, _ in engine.calls if call == "save"]
    await adapters.adopt("three", engine.copy_adapter("model", "three"), tmp_path / "three")
    await adapters.close()
    assert set(engine.adapters) == {"model", "two", "three"}
    await use(adapters, "one", tmp_path)
    assert "one" in engine.adapters  # read again from where it was written


async def test_a_snapshot_that_cannot_be_written_stays(engine, tmp_path, monkeypatch):
    async def full(*_, **__):
        raise EngineError("no space left", "server")

    adapters = SamplerAdapters(engine, limit=1)
    await engine.create_adapter("model", LoraSpec())
    monkeypatch.setattr(engine, "save", full)
    for name in ("one", "two"):
        await adapters.adopt(name, engine.copy_adapter("model", name), tmp_path / name)
        await adapters.close()
    assert set(engine.adapters) == {"model", "one", "two"}


async def test_what_samples_is_not_put_away(engine, tmp_path):
    adapters = SamplerAdapters(engine, limit=1)
    await saved(engine, tmp_path, "one", "two")
    async with adapters.hold("one", tmp_path / "one"):
        await use(adapters, "two", tmp_path)
        assert set(engine.adapters) == {"one"}  # and the other makes the room
        await adapters.drop("one")
        assert set(engine.adapters) == {"one"}
    assert not engine.adapters


async def test_what_a_dead_engine_held_is_read_again_or_lost(engine, tmp_path):
    adapters = SamplerAdapters(engine, limit=9)
    await saved(engine, tmp_path, "kept")
    await use(adapters, "kept", tmp_path)
    await engine.create_adapter("model", LoraSpec())
    await adapters.adopt("fresh", engine.copy_adapter("model", "fresh"), tmp_path / "fresh")
    await adapters.close()
    engine.adapters.clear()
    assert adapters.forget() == {"fresh"}
    await use(adapters, "kept", tmp_path)
    assert set(engine.adapters) == {"kept"}


async def test_a_slow_load_holds_up_no_other(engine, tmp_path, monkeypatch):
    go, load = asyncio.Event(), engine.load

    async def slow(adapter, folder, optimizer):
        if adapter == "slow":
            await go.wait()
        return await load(adapter, folder, optimizer)

    adapters = SamplerAdapters(engine, limit=4)
    await saved(engine, tmp_path, "slow", "quick")
    monkeypatch.setattr(engine, "load", slow)
    twice = [asyncio.create_task(use(adapters, "slow", tmp_path)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.wait_for(use(adapters, "quick", tmp_path), 5)
    go.set()
    await asyncio.gather(*twice)
    assert [adapter for call, adapter in engine.calls if call == "load"] == ["quick", "slow"]


async def test_a_load_that_failed_can_be_tried_again(engine, tmp_path):
    adapters = SamplerAdapters(engine, limit=1)
    with pytest.raises(EngineError, match="holds no adapter"):
        await use(adapters, "late", tmp_path)
    await saved(engine, tmp_path, "late")
    await use(adapters, "late", tmp_path)
    assert "late" in engine.adapters


# Through the addresses


async def save(door, model, seq, **fields):
    made = await door.post("/save_weights_for_sampler", model_id=model, seq_id=seq, **fields)
    return (await door.fetch(made["request_id"])).json()


async def logprob(door, sampler, seq=0):
    """Return minus the weight that a sampling session samples from, as the scripted engine tells it."""
    from doorstep.training.codec import schema

    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1]}]}
    params = {"max_tokens": 1}
    made = await door.post("/asample", sampling_session_id=sampler, seq_id=seq, prompt=prompt, sampling_params=params)
    answer = schema().SampleResponse.FromString((await door.fetch(made["request_id"])).content)
    return memoryview(answer.sequences[0].logprobs).cast("f")[0]


async def trained(door, model, weight):
    door.engine.adapters[model].weight = weight


async def test_inflight_sampling_sessions_follow_what_is_published(door):
    model = await door.model()
    first = (await save(door, model, 1, sampling_session_seq_id=0, kind="inflight"))["sampling_session_id"]
    fixed = (await save(door, model, 2, sampling_session_seq_id=1))["sampling_session_id"]
    await trained(door, model, 3.0)
    assert await logprob(door, first) == -1
    second = (await save(door, model, 3, sampling_session_seq_id=2, kind="inflight"))["sampling_session_id"]
    assert [await logprob(door, sampler, 1) for sampler in (first, second, fixed)] == [-3, -3, -1]
    assert len(door.engine.adapters) == 3  # the model, the snapshot, and only the newest published


async def test_unnamed_saves_end_with_their_session(door):
    session = await door.session()
    model = await door.model(session)
    sampler = (await save(door, model, 1, sampling_session_seq_id=0))["sampling_session_id"]
    await save(door, model, 2, sampling_session_seq_id=1, kind="inflight")
    await door.http.post(f"/sessions/{session}/finish", json={"reason": {"type": "success"}})
    assert not door.engine.adapters
    assert "end with their session" in (await door.http.get(f"/samplers/{sampler}")).json()["detail"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "named", "kind": "inflight"}, "has no name"),
        ({"sampling_session_seq_id": 0, "kind": "live"}, "there are: snapshot, inflight"),
        ({"sampling_session_seq_id": 0, "ttl_seconds": 3600}, "ends with its session"),
        ({}, "needs a name"),
    ],
)
async def test_saves_that_cannot_be(door, fields, message):
    assert message in (await save(door, await door.model(), 1, **fields))["error"]


async def test_sampling_straight_from_a_training_checkpoint(door):
    session = await door.session()
    model = await door.model(session)
    await trained(door, model, 5.0)
    made = await door.post("/save_weights", model_id=model, seq_id=1, path="state")
    path = (await door.fetch(made["request_id"])).json()["path"]
    made = await door.post("/create_sampling_session", session_id=session, sampling_session_seq_id=0, model_path=path)
    assert await logprob(door, made["sampling_session_id"]) == -5


async def test_copies_of_a_sampling_client_get_numbers_of_their_own(door):
    model = await door.model()
    sampler = (await save(door, model, 1, sampling_session_seq_id=0))["sampling_session_id"]
    numbers = [await door.post("/join_sampling_session", sampling_session_id=sampler) for _ in range(3)]
    counters = [number["client_counter"] for number in numbers]
    assert len(set(counters)) == 3
    assert max(counters) * 1_000_000_000 < 2**63 - 1_000_000_000
