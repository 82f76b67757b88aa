"""What was read is not read again: found by its beginning, for one version of the weights, with the same bits."""

import gc

import pytest
import torch
from engine_use import sample, tokens, train, trained

from doorstep.engine.api import Finished, SampleParams
from doorstep.engine.native import prefix
from doorstep.engine.native.base import load_base
from doorstep.engine.native.prefix import CHUNK, Reader
from doorstep.engine.native.version import version

START = tokens(CHUNK + 10, 1)


@pytest.fixture
def base(folder):
    return load_base(folder, "random", torch.device("cpu"))


async def cached(engine, adapter: str | None, prompt: list[int]) -> int:
    events = [event async for event in engine.sample(adapter, prompt, SampleParams(max_tokens=1))]
    assert isinstance(events[-1], Finished)
    return events[-1].cached


async def test_whole_chunks_of_the_same_beginning_are_found(engine):
    assert await cached(engine, None, START) == 0
    assert await cached(engine, None, START + tokens(50, 2)) == CHUNK
    assert await cached(engine, None, START + tokens(60, 3)) == CHUNK  # what follows differs within a chunk
    assert await cached(engine, None, [1, *START]) == 0


async def test_each_version_of_an_adapter_has_its_own(engine):
    await trained(engine, "a")
    assert [await cached(engine, "a", START) for _ in range(2)] == [0, CHUNK]
    assert await cached(engine, None, START) == 0
    await train(engine, "a")
    assert await cached(engine, "a", START) == 0


@pytest.mark.parametrize("length", [CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 40])
async def test_a_hit_gives_the_bits_of_a_miss(engine, length):
    prompt, params = tokens(length, 5), SampleParams(max_tokens=20, seed=1, stop=[])
    missed = await sample(engine, None, prompt, params, n=3)
    assert await cached(engine, None, prompt) == length // CHUNK * CHUNK
    assert await sample(engine, None, prompt, params, n=3) == missed


def test_the_longest_unused_is_forgotten_first_and_ends_before_beginnings(base, monkeypatch):
    monkeypatch.setattr(prefix, "KEPT_BYTES", 1)
    reader, plain = Reader(base), version(base.weights, None)
    reader.read(plain, tokens(2 * CHUNK, 1))
    assert reader.read(plain, tokens(2 * CHUNK, 1)).cached == CHUNK
    reader.read(plain, tokens(CHUNK, 2))
    assert reader.read(plain, tokens(2 * CHUNK, 1)).cached == 0


def test_what_was_read_goes_with_its_version(base):
    reader, gone = Reader(base), version(base.weights, None)
    reader.read(gone, START)
    assert reader.chunks == 1
    del gone
    gc.collect()
    assert reader.chunks == 0
