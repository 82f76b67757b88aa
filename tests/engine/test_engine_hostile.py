"""What one tenant can ask for to harm the others, and files that are not as they were saved."""

import asyncio
import math

import pytest
from engine_use import CROSS_ENTROPY, ROWS, sample, trained
from msgspec.structs import replace

from doorstep.engine import local
from doorstep.engine.api import AdamParams, LoraSpec, SampleParams, ScoreParams
from doorstep.errors import EngineError

LONG = SampleParams(max_tokens=40, seed=3, stop=[])


async def diverged(engine, name):
    await engine.create_adapter(name, LoraSpec(rank=2))
    await engine.forward_backward(name, ROWS, CROSS_ENTROPY)
    await engine.optim_step(name, AdamParams(learning_rate=1e30))


async def test_an_adapter_that_has_diverged_fails_alone(engine):
    alone = await sample(engine, None, [1, 2, 3], LONG)
    await diverged(engine, "a")
    failed, beside = await asyncio.gather(
        sample(engine, "a", [1, 2, 3], LONG), sample(engine, None, [1, 2, 3], LONG), return_exceptions=True
    )
    assert "its adapter has diverged" in str(failed)
    assert beside == alone


async def test_scores_of_an_adapter_that_has_diverged_are_told_as_such(engine):
    await diverged(engine, "a")
    scores = await engine.score("a", [1, 2, 3], ScoreParams(alternatives=2))
    assert math.isnan(scores.logprobs[1])
    assert all(math.isnan(logprob) for place in scores.alternatives for _, logprob in place)


async def test_a_stream_of_samples_does_not_keep_another_tenants_group_out(engine, monkeypatch):
    monkeypatch.setattr(local, "MAX_ROWS", 4)
    for name in ("busy", "other"):
        await engine.create_adapter(name, LoraSpec(rank=2))
    queued = [sample(engine, "busy", [1], replace(LONG, max_tokens=5 + at)) for at in range(20)]
    busy = asyncio.gather(*queued)
    group = asyncio.create_task(sample(engine, "other", [1], replace(LONG, max_tokens=2), n=4))
    await asyncio.wait({busy, group}, return_when=asyncio.FIRST_COMPLETED)
    assert group.done()
    assert not busy.done()
    await busy


@pytest.mark.parametrize("temperature", [1e-300, 1e-21, -1.0, math.inf, math.nan])
async def test_scores_are_not_divided_by_nothing(engine, temperature):
    with pytest.raises(EngineError, match=r"temperature is .* it must be 0, or from 1e-20 on and finite"):
        await sample(engine, None, [1], replace(LONG, temperature=temperature))
    with pytest.raises(EngineError, match="temperature is"):
        await engine.score(None, [1, 2], ScoreParams(alternatives=1, temperature=temperature))


async def test_the_coldest_temperature_chooses_as_0_does(engine):
    greedy = await sample(engine, None, [1, 2, 3], replace(LONG, temperature=0))
    cold = await sample(engine, None, [1, 2, 3], replace(LONG, temperature=1e-20))
    assert [token for token, _ in cold[0]] == [token for token, _ in greedy[0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": -1.0},
        {"learning_rate": math.inf},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"eps": -1.0},
        {"weight_decay": math.nan},
        {"grad_clip_norm": -1.0},
    ],
)
async def test_a_step_that_torch_would_refuse_is_refused(engine, wrong):
    await engine.create_adapter("a", LoraSpec(rank=2))
    with pytest.raises(EngineError, match=f"{next(iter(wrong))} is .* it must be 0 or more"):
        await engine.optim_step("a", AdamParams(**wrong))


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"])
async def test_a_file_that_is_not_as_it_was_saved_is_not_loaded(engine, tmp_path, file):
    await trained(engine, "a", steps=1)
    await engine.save("a", str(tmp_path / "a"), optimizer=True)
    data = bytearray((tmp_path / "a" / file).read_bytes())
    data[-2] ^= 1
    (tmp_path / "a" / file).write_bytes(data)
    with pytest.raises(EngineError, match=f"{file} in .* is damaged"):
        await engine.load("b", str(tmp_path / "a"), optimizer=True)


async def test_a_damaged_optimizer_harms_only_who_needs_it(engine, tmp_path):
    await trained(engine, "a", steps=1)
    await engine.save("a", str(tmp_path / "a"), optimizer=True)
    (tmp_path / "a" / "optimizer.safetensors").unlink()
    assert await engine.load("b", str(tmp_path / "a"), optimizer=False) == LoraSpec(rank=4)


async def test_the_hashes_of_a_whole_model_count_too(engine, tmp_path):
    await engine.create_adapter("a", LoraSpec(rank=0))
    await engine.save("a", str(tmp_path / "a"), optimizer=False)
    with (tmp_path / "a" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(EngineError, match=r"model\.safetensors in .* is damaged"):
        await engine.load("b", str(tmp_path / "a"), optimizer=False)


@pytest.mark.parametrize("config", ["null", "[]", '{"r": "x", "lora_alpha": 1}', '{"r": 1000000, "lora_alpha": 1}'])
async def test_settings_of_another_making_are_checked(engine, tmp_path, config):
    await engine.create_adapter("a", LoraSpec(rank=2))
    await engine.save("a", str(tmp_path / "a"), optimizer=False)
    (tmp_path / "a" / "SHA256SUMS").unlink()
    (tmp_path / "a" / "adapter_config.json").write_text(config)
    with pytest.raises(EngineError, match="holds no adapter that can be read") as caught:
        await engine.load("b", str(tmp_path / "a"), optimizer=False)
    assert caught.value.category == "user"
