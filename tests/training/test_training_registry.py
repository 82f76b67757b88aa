"""What is kept on disk: read back, replaced, shared by its owner only, and damaged here and there."""

import shutil

import msgspec
import pytest

from doorstep import ids
from doorstep.engine.api import LoraSpec
from doorstep.errors import BadInput, NotFound, UsageError
from doorstep.training.paths import Kind, TinkerPath
from doorstep.training.registry import Registry, Sampler, SavedCheckpoint, Session, TrainingRun, expiry

RUN = "s:train:0"
ONE = TinkerPath(RUN, Kind.WEIGHTS, "one")


@pytest.fixture
def registry(tmp_path):
    """A registry with one session, run, sampler and checkpoint of ``ann``."""
    made = Registry(tmp_path)
    made.put_session(Session(session_id="s", owner="ann", created_us=1, sdk_version="0.38.0"))
    made.put_run(TrainingRun(run_id=RUN, owner="ann", base="b", base_digest="d", spec=LoraSpec(rank=2), created_us=1))
    made.put_sampler(Sampler(sampler_id="s:sample:0", session_id="s", path=None))
    saved(made, ONE)
    return made


def saved(registry, path, **fields):
    folder = registry.new_folder(path)
    folder.mkdir()
    (folder / "adapter.json").write_text(path.name)
    one = SavedCheckpoint(path=str(path), folder=folder.name, digest="d", size=10, created_us=1, **fields)
    registry.put_checkpoint(one)
    return folder


def again(tmp_path):
    registry = Registry(tmp_path)
    registry.sweep()
    return registry


def test_a_registry_reads_back_what_it_wrote(registry, tmp_path):
    found = again(tmp_path)
    assert found.run(RUN, "ann") == registry.run(RUN, "ann")
    assert found.checkpoint(ONE, "ann") == registry.checkpoint(ONE, "ann")
    assert found.sampler("s:sample:0", "ann").path is None


def test_a_record_without_an_owner_is_of_this_machine(tmp_path):
    file = tmp_path / "old" / "session.json"
    file.parent.mkdir()
    file.write_text('{"session_id": "old", "created_us": 1, "sdk_version": "0.38.0"}')
    assert Registry(tmp_path).session("old", "local").created_us == 1


def test_a_save_that_was_cut_off_leaves_the_one_before(registry, tmp_path):
    half = registry.new_folder(ONE)
    half.mkdir()
    found = again(tmp_path)
    assert not half.exists()
    assert (found.folder(found.checkpoint(ONE, "ann")) / "adapter.json").read_text() == "one"


def test_reading_removes_nothing(registry, tmp_path):
    half = registry.new_folder(ONE)
    half.mkdir()
    Registry(tmp_path)
    assert half.exists()


def test_replacing_a_checkpoint_removes_the_old_weights(registry):
    before = registry.folder(registry.checkpoint(ONE, "ann"))
    after = saved(registry, ONE)
    assert (before.exists(), after.exists()) == (False, True)


@pytest.mark.parametrize(
    "ask",
    [
        lambda found, tenant: found.session("s", tenant),
        lambda found, tenant: found.run(RUN, tenant),
        lambda found, tenant: found.sampler("s:sample:0", tenant),
        lambda found, tenant: found.checkpoint(ONE, tenant),
        lambda found, tenant: found.own_checkpoint(ONE, tenant),
        lambda found, tenant: found.readable_run(RUN, tenant),
    ],
)
def test_what_is_anothers_is_not_there(registry, tmp_path, ask):
    ask(registry, "ann")
    with pytest.raises(NotFound) as anothers:
        ask(registry, "bob")
    with pytest.raises(NotFound) as nobodys:
        ask(Registry(tmp_path / "empty"), "bob")
    assert str(anothers.value) == str(nobodys.value)


def test_nothing_of_another_is_listed(registry):
    assert registry.sessions("bob") == registry.runs("bob") == registry.all_checkpoints("bob") == []
    assert registry.checkpoints(RUN, "bob") == []
    assert (registry.bytes_of("ann"), registry.bytes_of("bob")) == (10, 0)


def test_a_published_checkpoint_is_read_by_all_and_changed_by_its_owner(registry):
    registry.put_checkpoint(msgspec.structs.replace(registry.checkpoint(ONE, "ann"), public=True))
    assert registry.checkpoint(ONE, "bob").public
    assert registry.readable_run(RUN, "bob").run_id == RUN
    with pytest.raises(NotFound):
        registry.own_checkpoint(ONE, "bob")


def test_an_expired_checkpoint_is_not_there_and_is_swept(registry, tmp_path):
    two = TinkerPath(RUN, Kind.SAMPLER, "two")
    folder = saved(registry, two, expires_us=ids.now_us() - 1)
    with pytest.raises(NotFound):
        registry.checkpoint(two, "ann")
    assert [item.path for item in registry.checkpoints(RUN, "ann")] == [str(ONE)]
    again(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("ttl", [0, -1, 10**12])
def test_a_time_to_live_has_bounds(ttl):
    with pytest.raises(UsageError, match="ttl_seconds is"):
        expiry(ttl)


def test_a_copy_shares_bytes_and_outlives_the_original(registry):
    target = TinkerPath("s:train:1", Kind.WEIGHTS, "one")
    registry.put_run(msgspec.structs.replace(registry.run(RUN, "ann"), run_id=target.run_id))
    original = registry.folder(registry.checkpoint(ONE, "ann")) / "adapter.json"
    copied = registry.folder(registry.copy_checkpoint(registry.checkpoint(ONE, "ann"), target, None)) / "adapter.json"
    assert original.stat().st_ino == copied.stat().st_ino
    registry.remove_checkpoint(ONE)
    assert copied.read_text() == "one"


def test_a_checkpoint_whose_files_are_gone_is_told(registry):
    shutil.rmtree(registry.folder(registry.checkpoint(ONE, "ann")))
    target = TinkerPath("s:train:1", Kind.WEIGHTS, "one")
    with pytest.raises(BadInput, match="its files are gone from the disk"):
        registry.copy_checkpoint(registry.checkpoint(ONE, "ann"), target, None)


def test_a_damaged_checkpoint_is_told_to_its_owner_and_harms_no_other(registry, tmp_path):
    two = TinkerPath(RUN, Kind.WEIGHTS, "two")
    folder = saved(registry, two)
    folder.with_name("two.json").write_text("{")
    found = again(tmp_path)
    assert found.checkpoint(ONE, "ann")
    assert folder.exists()
    with pytest.raises(BadInput, match=r"two\.json cannot be read .* Restore it from a copy, or delete it"):
        found.checkpoint(two, "ann")
    with pytest.raises(NotFound, match="there is no checkpoint"):
        found.checkpoint(two, "bob")


def test_a_damaged_checkpoint_can_be_deleted(registry, tmp_path):
    folder = registry.folder(registry.checkpoint(ONE, "ann"))
    folder.with_name("one.json").write_bytes(b"\xff")
    found = again(tmp_path)
    assert [one.name for one in found.damaged_checkpoints(RUN, "ann")] == [str(ONE)]
    assert (found.remove_damaged(ONE, "bob"), found.remove_damaged(ONE, "ann")) == (False, True)
    assert found.damaged_checkpoints(RUN, "ann") == []
    again(tmp_path)
    assert not folder.exists()


def test_a_damaged_run_is_listed_for_its_owner(registry, tmp_path):
    (tmp_path / "s" / "0" / "run.json").write_text("")
    found = again(tmp_path)
    assert [one.name for one in found.damaged_runs("ann")] == [RUN]
    assert found.damaged_runs("bob") == []
    with pytest.raises(BadInput, match=r"run\.json cannot be read"):
        found.run(RUN, "ann")


def test_a_save_makes_room_of_what_has_expired(registry):
    folder = saved(registry, TinkerPath(RUN, Kind.SAMPLER, "old"), expires_us=ids.now_us() + 1)
    saved(registry, TinkerPath(RUN, Kind.SAMPLER, "new"))
    assert not folder.exists()
