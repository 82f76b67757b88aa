"""Limits of a tenant, and what it used, kept over restarts."""

import pytest

from doorstep.config import TrainingSettings
from doorstep.engine.api import LoraSpec
from doorstep.errors import LimitReached
from doorstep.training import tenants
from doorstep.training.paths import Kind, TinkerPath
from doorstep.training.registry import Registry, SavedCheckpoint, TrainingRun
from doorstep.training.tenants import SAMPLED, TRAINED, Quotas, Usage


@pytest.fixture
def usage(tmp_path):
    made = Usage(tmp_path / "usage.jsonl")
    made.compact()
    return made


def quotas(tmp_path, usage, **limits):
    return Quotas(TrainingSettings(**limits), usage, Registry(tmp_path / "sessions"))


def test_usage_adds_up_and_outlives_the_process(usage, tmp_path):
    usage.book("ann", TRAINED, 10, 0.5)
    usage.book("ann", TRAINED, 5, 0.25)
    usage.book("bob", SAMPLED, 7, 0.1)
    found = Usage(tmp_path / "usage.jsonl")
    assert [(one.kind, one.tokens, one.seconds) for one in found.of("ann")] == [(TRAINED, 15, 0.75)]
    assert found.tokens_today("bob") == 7
    assert len(found.of(None)) == 2


def test_usage_that_was_cut_off_is_passed_over(usage, tmp_path):
    usage.book("ann", TRAINED, 10, 0.5)
    file = tmp_path / "usage.jsonl"
    file.write_bytes(file.read_bytes() + b'{"day": "20')
    found = Usage(file)
    found.compact()
    assert found.tokens_today("ann") == 10
    assert len(file.read_bytes().splitlines()) == 1


def test_many_lines_are_summed_up(usage, tmp_path, monkeypatch):
    monkeypatch.setattr(tenants, "MOST_LINES", 10)
    for _ in range(25):
        usage.book("ann", TRAINED, 1, 0.5)
    assert len((tmp_path / "usage.jsonl").read_bytes().splitlines()) == 6
    assert Usage(tmp_path / "usage.jsonl").tokens_today("ann") == 25


def test_a_day_ends_the_count_of_a_day(usage, monkeypatch):
    usage.book("ann", TRAINED, 10, 0.5)
    monkeypatch.setattr(tenants, "_today", lambda: "2999-01-01")
    assert usage.tokens_today("ann") == 0


def test_nothing_is_limited_unless_said(usage, tmp_path):
    free = quotas(tmp_path, usage)
    free.admit_model("ann", 1000)
    free.admit_tokens("ann", 10**12)
    free.admit_checkpoint("ann")
    assert usage.of("ann") == []


def test_models_are_limited_at_once(usage, tmp_path):
    limited = quotas(tmp_path, usage, max_models=2)
    limited.admit_model("ann", 1)
    with pytest.raises(LimitReached, match="ann has 2 models here, and 2 are allowed") as refused:
        limited.admit_model("ann", 2)
    assert refused.value.status == 403


def test_tokens_are_limited_by_day_and_tenant(usage, tmp_path):
    limited = quotas(tmp_path, usage, max_tokens_per_day=100)
    limited.book("ann", TRAINED, 60, 1.0)
    limited.book("ann", SAMPLED, 30, 1.0)
    limited.admit_tokens("ann", 10)
    limited.admit_tokens("bob", 100)
    with pytest.raises(LimitReached, match="11 tokens more are beyond your 100 a day; 90 are used") as refused:
        limited.admit_tokens("ann", 11)
    assert 0 < refused.value.retry_after_s <= 86_400


def test_checkpoints_are_limited_by_bytes(tmp_path, usage):
    limited = quotas(tmp_path, usage, max_checkpoint_bytes=10)
    registry = Registry(tmp_path / "sessions")
    path = TinkerPath("s:train:0", Kind.WEIGHTS, "one")
    run = TrainingRun(run_id=path.run_id, owner="ann", base="b", base_digest="d", spec=LoraSpec(), created_us=1)
    registry.put_run(run)
    limited.admit_checkpoint("ann")
    registry.put_checkpoint(SavedCheckpoint(path=str(path), folder="f", digest="d", size=10, created_us=1))
    limited = quotas(tmp_path, usage, max_checkpoint_bytes=10)
    with pytest.raises(LimitReached, match="take 10 bytes, and 10 are allowed"):
        limited.admit_checkpoint("ann")
    limited.admit_checkpoint("bob")
