"""Sampling: that numbers do not depend on the batch, that draws follow the model, and where samples end."""

import asyncio
import math
from collections import Counter
from random import Random

import pytest
import tiny_models
import torch
from engine_use import CROSS_ENTROPY, all_at_once, sample, tokens, train, trained

from doorstep.engine import local
from doorstep.engine.api import Finished, LoraSpec, SampleParams, Token, TrainRow
from doorstep.engine.choice import Wish, choose
from doorstep.engine.local import LocalEngine
from doorstep.engine.native import prefix
from doorstep.engine.native.products import FIXED

FREE = SampleParams(max_tokens=12, seed=1, stop=[])


def some_jobs(count: int, seed: int) -> list:
    """Requests of all kinds: lengths around the size classes, one and many samples, every way to choose."""
    random = Random(seed)
    kinds = [{}, {"temperature": 0.7}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.8}, {"temperature": 1.5}]
    return [
        (
            random.choice(["a", None]),
            tokens(random.choice([1, 5, 31, 63, 64, 65, 100]), random.randrange(999)),
            SampleParams(max_tokens=random.choice([1, 7, 40]), seed=random.randrange(99), **random.choice(kinds)),
            random.choice([1, 2, 8, 9]),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(("threads", "count"), [(1, 31), (2, 8)])
async def test_a_request_gives_the_same_bits_alone_and_among_others(folder, monkeypatch, threads, count):
    monkeypatch.setattr(local, "SHARE", 1)  # as if the model were large
    await same_alone_and_among_others(folder, threads, some_jobs(count, seed=threads))


@pytest.mark.parametrize("threads", [4, 8])
async def test_more_threads_change_nothing_of_that_where_no_size_is_odd(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(local, "SHARE", 1)
    await same_alone_and_among_others(tiny_models.write(tiny_models.qwen3(), tmp_path), threads, some_jobs(8, threads))


async def same_alone_and_among_others(folder, threads, jobs):
    engine = await LocalEngine.start(folder, "random", threads)
    await trained(engine, "a")
    alone = [await sample(engine, *job) for job in jobs]
    for seed in range(2):
        order = Random(seed).sample(range(len(jobs)), len(jobs))
        together = await all_at_once(engine, [jobs[index] for index in order])
        assert together == [alone[index] for index in order]
    await engine.close()


async def test_it_holds_as_well_where_products_have_a_fixed_number_of_rows(folder, monkeypatch):
    monkeypatch.setattr(prefix, "rows_of", lambda *_: FIXED)
    engine = await LocalEngine.start(folder, "random")
    await trained(engine, "a")
    jobs = some_jobs(8, seed=5)
    alone = [await sample(engine, *job) for job in jobs]
    assert await all_at_once(engine, jobs) == alone
    await engine.close()


async def test_adapters_of_all_kinds_sample_together(engine):
    specs = [
        LoraSpec(rank=4),
        LoraSpec(rank=4, seed=1),
        LoraSpec(rank=3, train_mlp=False),
        LoraSpec(rank=1, train_attn=False, train_unembed=False),
        LoraSpec(rank=0),
    ]
    for number, spec in enumerate(specs):
        await trained(engine, str(number), spec=spec)
    names = [None, *map(str, range(len(specs)))]
    jobs = [(name, tokens(20, 1), FREE, samples) for name in names for samples in (1, 9)]
    alone = [await sample(engine, *job) for job in jobs]
    assert await all_at_once(engine, jobs) == alone
    assert len({str(each[0]) for each in alone}) == len(names)


async def test_a_sample_is_the_same_among_more_samples(engine):
    prompt = tokens(40, 1)
    many = await sample(engine, None, prompt, FREE, n=11)
    assert (await sample(engine, None, prompt, FREE, n=1))[0] == many[0]
    assert (await sample(engine, None, prompt, FREE, n=5)) == many[:5]
    assert len({tuple(each) for each in many}) > 5


async def test_a_request_that_comes_later_joins_and_changes_nothing(engine):
    jobs = some_jobs(6, seed=8)
    await trained(engine, "a")
    alone = [await sample(engine, *job) for job in jobs]

    async def late(index):
        await asyncio.sleep(0.004 * index)
        return await sample(engine, *jobs[index])

    assert await asyncio.gather(*map(late, range(6))) == alone


async def test_training_beside_sampling_changes_neither(engine):
    await trained(engine, "a")
    await engine.create_adapter("b", LoraSpec(rank=4))
    jobs = [("a", tokens(20, seed), SampleParams(max_tokens=60, seed=seed, stop=[]), 4) for seed in range(4)]
    before = await all_at_once(engine, jobs)
    beside, *_ = await asyncio.gather(all_at_once(engine, jobs), *(train(engine, "b") for _ in range(3)))
    assert beside == before


async def test_samples_begun_before_a_step_keep_their_weights(engine):
    await trained(engine, "a")
    params = SampleParams(max_tokens=100, seed=1, stop=[])
    before = await sample(engine, "a", tokens(9, 1), params)
    under_way, _ = await asyncio.gather(sample(engine, "a", tokens(9, 1), params), train(engine, "a"))
    assert under_way == before
    assert await sample(engine, "a", tokens(9, 1), params) != before


BOUND = 1e-5  # between a token's log-probability as it was sampled, trained on and scored


async def test_log_probabilities_are_those_of_the_trainer(engine):
    names = [str(number) for number in range(8)]
    for number, name in enumerate(names):
        await trained(engine, name, spec=LoraSpec(rank=2 + number, seed=number))
    params = SampleParams(max_tokens=150, seed=2, stop=[])
    found = await all_at_once(engine, [(name, tokens(30, number), params, 2) for number, name in enumerate(names)])
    for number, name in enumerate(names):
        for ids, sampled in (zip(*each, strict=True) for each in found[number]):
            text = [*tokens(30, number), *ids]
            row = TrainRow(tokens=text[:-1], targets=text[1:], inputs={"weights": [1.0] * (len(text) - 1)})
            trainer = await engine.forward_backward(name, [row], CROSS_ENTROPY, forward_only=True)
            scored = (await engine.score(name, text)).logprobs
            assert sampled == pytest.approx(trainer.logprobs[0][-150:], rel=0, abs=BOUND)
            assert sampled == pytest.approx(scored[-150:], rel=0, abs=BOUND)


async def test_greedy_is_that_of_transformers(engine, model):
    prompt = tokens(21, 3)
    expected = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 21), max_new_tokens=40, do_sample=False, eos_token_id=None
    )
    (found,) = await sample(engine, None, prompt, SampleParams(max_tokens=40, temperature=0.0, stop=[]))
    assert [token for token, _ in found] == expected[0, 21:].tolist()


async def test_a_request_without_a_seed_gets_a_fresh_one(engine):
    params = SampleParams(max_tokens=20, temperature=2.0, stop=[])
    assert await sample(engine, None, [1, 2], params) != await sample(engine, None, [1, 2], params)


async def test_a_stop_sequence_ends_a_sample_and_is_part_of_it(engine):
    (free,) = await sample(engine, None, tokens(8, 1), FREE)
    ids = [token for token, _ in free]
    params = SampleParams(max_tokens=12, seed=1, stop=[ids[3:5]])
    events = [event async for event in engine.sample(None, tokens(8, 1), params)]
    assert [event.id for event in events if isinstance(event, Token)] == ids[:5]
    assert events[-1] == Finished(0, "stop")


async def test_by_default_the_end_token_of_the_base_stops(engine):
    params = SampleParams(max_tokens=150, temperature=3.0, seed=1)
    (found,) = await sample(engine, None, [7], params)
    ids = [token for token, _ in found]
    assert ids.index(tiny_models.SIZES["eos_token_id"]) == len(ids) - 1 < 149


async def test_the_context_ends_a_sample(engine):
    params = SampleParams(max_tokens=10_000, stop=[])
    events = [event async for event in engine.sample(None, tokens(180, 1), params)]
    assert len(events) == 13
    assert events[-1] == Finished(0, "length")


async def test_closing_the_iterator_frees_the_engine(engine):
    stream = engine.sample(None, [1], SampleParams(max_tokens=150, stop=[]), n=64)
    await anext(stream)
    await stream.aclose()
    await sample(engine, None, [1], SampleParams(max_tokens=2, stop=[]))
    assert engine._worker._sampler.rows == 0


def chosen(logits: torch.Tensor, params: SampleParams, count: int) -> Counter[int]:
    draws = [(index + 0.5) / count for index in range(count)]
    return Counter(choose(logits.expand(count, -1), [Wish(params, draw) for draw in draws]).ids)


def test_draws_are_in_proportion_to_the_probabilities():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    assert chosen(probabilities.log(), SampleParams(max_tokens=1), 100) == {0: 50, 2: 30, 3: 20}
    squared = chosen(probabilities.log(), SampleParams(max_tokens=1, temperature=0.5), 380)
    assert squared == {0: 250, 2: 90, 3: 40}


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    assert chosen(logits, SampleParams(max_tokens=1, top_k=2), 70) == {1: 40, 3: 30}
    assert chosen(logits, SampleParams(max_tokens=1, top_p=0.65), 70) == {1: 40, 3: 30}
    assert chosen(logits, SampleParams(max_tokens=1, top_p=0.75), 90) == {1: 40, 3: 30, 2: 20}
    assert chosen(logits, SampleParams(max_tokens=1, top_p=0.01), 9) == {1: 9}


def test_log_probabilities_are_at_temperature_one_over_everything():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for params in (SampleParams(max_tokens=1, top_k=1), SampleParams(max_tokens=1, temperature=0.0)):
        assert choose(logits, [Wish(params, 0.9)]).logprobs[0] == pytest.approx(math.log(0.4))
