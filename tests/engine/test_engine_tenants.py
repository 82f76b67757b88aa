"""Calls of different tenants, done together: each has the same bits as alone, whatever the others are."""

import asyncio

import pytest
import torch
from engine_use import CROSS_ENTROPY, ROWS, row, run, samples, together, train, trained

from doorstep.config import TINY
from doorstep.engine import local
from doorstep.engine.api import LoraSpec, Loss
from doorstep.engine.local import LocalEngine
from doorstep.engine.native.runtime import NativeRuntime
from doorstep.engine.runtime import Task
from doorstep.errors import EngineError

SPECS = [
    LoraSpec(rank=4, seed=1),
    LoraSpec(rank=4, seed=2, alpha=7),
    LoraSpec(rank=40, seed=3, train_unembed=False),
    LoraSpec(rank=2, seed=4, train_mlp=False),
    LoraSpec(rank=3, seed=5, train_attn=False),
    LoraSpec(rank=5, seed=6, train_attn=False, train_mlp=False),
    LoraSpec(rank=1, seed=7),
]
ROWS_OF = [
    [row(20, 1)],
    [row(21, 2)],
    [*samples(20, [5, 1, 9, 3], 3), row(40, 4), row(7, 5)],
    [row(length, length) for length in (90, 3, 3, 64, 33)],
    [row(31, 6)],
    samples(11, [4, 4], 7),
    [row(33, 8), row(70, 9)],
]
LOSSES = ["cross_entropy", "ppo", "importance_sampling", "cispo", "cross_entropy", "dro", "ppo"]


def adapters(runtime):
    """Adapters of all kinds that have learned a little, so that every matrix has a gradient."""
    made = [runtime.adapter(spec) for spec in SPECS]
    for number, adapter in enumerate(made):
        adapter.flat.add_(torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(number)), alpha=0.02)
    return made


def calls(runtime):
    return [
        (adapter, rows, Loss(name=name)) for adapter, rows, name in zip(adapters(runtime), ROWS_OF, LOSSES, strict=True)
    ]


def test_tenants_together_equal_tenants_alone_bit_for_bit(runtime):
    mixed, alone = calls(runtime), calls(runtime)
    assert together(runtime, mixed) == [run(runtime, *call) for call in alone]
    for (ours, *_), (theirs, *_) in zip(mixed, alone, strict=True):
        assert ours.gradient.any()
        assert torch.equal(ours.gradient, theirs.gradient)


def test_the_order_of_tenants_does_not_matter(runtime):
    forwards, backwards = calls(runtime), calls(runtime)
    together(runtime, forwards)
    together(runtime, backwards[::-1])
    for (ours, *_), (theirs, *_) in zip(forwards, backwards, strict=True):
        assert torch.equal(ours.gradient, theirs.gradient)


def test_more_rows_than_one_pass_holds(runtime):
    many = [row(100 + seed % 7, seed) for seed in range(30)]  # 3,000 tokens
    whole, alone = runtime.adapter(SPECS[0]), runtime.adapter(SPECS[0])
    other = runtime.adapter(SPECS[2])
    mixed = together(runtime, [(whole, many, CROSS_ENTROPY), (other, ROWS, CROSS_ENTROPY)])
    assert mixed[0] == run(runtime, alone, many)
    assert torch.equal(whole.gradient, alone.gradient)


def test_a_call_that_fails_leaves_the_others_and_its_adapter_alone(runtime):
    good, bad = runtime.adapter(SPECS[0]), runtime.adapter(SPECS[1])
    bad.flat.fill_(torch.nan)
    failed = Loss(name="custom", graph="{")
    results = together(runtime, [(bad, ROWS, failed), (good, ROWS, CROSS_ENTROPY)])
    assert isinstance(results[0], EngineError)
    assert results[1] == run(runtime, runtime.adapter(SPECS[0]))
    assert not bad.gradient.any()


def test_a_tenant_of_nan_does_not_reach_its_neighbours(runtime):
    good, bad = runtime.adapter(SPECS[0]), runtime.adapter(SPECS[0])
    bad.flat.fill_(torch.nan)
    result = together(runtime, [(bad, ROWS, CROSS_ENTROPY), (good, ROWS, CROSS_ENTROPY)])[1]
    alone = runtime.adapter(SPECS[0])
    assert result == run(runtime, alone)
    assert torch.equal(good.gradient, alone.gradient)


def test_forward_only_beside_backward(runtime):
    adapter, other = runtime.adapter(SPECS[0]), runtime.adapter(SPECS[1])
    tasks = [Task(each, lambda: None, ROWS, CROSS_ENTROPY, only) for each, only in ((adapter, True), (other, False))]
    for _ in runtime.train(tasks):
        pass
    assert tasks[0].done == tasks[1].done  # B is zero: both are the base
    assert not adapter.gradient.any()
    assert other.gradient.any()


async def test_clients_at_the_same_time_get_what_they_get_alone(engine, tmp_path):
    for name in ("a", "b", "c"):
        await trained(engine, name)
    await asyncio.gather(*(train(engine, name) for name in ("a", "b")))
    await train(engine, "c")
    digests = {(await engine.save(name, str(tmp_path / name), optimizer=True)).digest for name in ("a", "b", "c")}
    assert len(digests) == 1


@pytest.mark.parametrize("threads", [2, 4, 8])
def test_more_threads_change_nothing_of_that(runtime, threads):
    torch.set_num_threads(threads)
    try:
        test_tenants_together_equal_tenants_alone_bit_for_bit(runtime)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_a_large_call_beside_a_small_one_on_the_shipped_base(threads):
    torch.set_num_threads(threads)
    try:
        shipped = NativeRuntime(TINY, "tiny", torch.device("cpu"))
        large = [row(90, seed) for seed in range(12)]
        mixed, alone = ([shipped.adapter(spec) for spec in SPECS[:1] + SPECS[-1:]] for _ in range(2))
        for adapter in mixed + alone:
            adapter.flat.add_(0.01)
        together(shipped, [(mixed[0], ROWS, CROSS_ENTROPY), (mixed[1], large, CROSS_ENTROPY)])
        run(shipped, alone[0])
        run(shipped, alone[1], large)
        for ours, theirs in zip(mixed, alone, strict=True):
            assert torch.equal(ours.gradient, theirs.gradient)
    finally:
        torch.set_num_threads(1)


async def test_large_calls_of_others_take_more_threads_and_change_nothing(tmp_path, monkeypatch):
    engine = await LocalEngine.start(TINY, "tiny", threads=2)
    size = (await engine.info()).parameters
    monkeypatch.setattr(local, "SHARE", 60 * size)  # a call of ROWS takes one thread, one of 120 tokens two
    for name in ("a", "b"):
        await engine.create_adapter(name, LoraSpec(rank=3, seed=1))
    await engine.create_adapter("large", LoraSpec(rank=3, seed=2))
    for _ in range(3):
        await train(engine, "a")
    for _ in range(3):  # after the first, when B is no longer zero
        large = engine.forward_backward("large", [row(40, seed) for seed in range(20)], CROSS_ENTROPY)
        await asyncio.gather(train(engine, "b"), large)
    digests = {(await engine.save(name, str(tmp_path / name), optimizer=True)).digest for name in ("a", "b")}
    await engine.close()
    assert len(digests) == 1
