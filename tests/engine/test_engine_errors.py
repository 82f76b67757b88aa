"""What cannot work is refused with the row, the field and the way out, and changes nothing."""

import math

import pytest
from engine_use import CROSS_ENTROPY, RATE, ROWS, sample, train, trained
from msgspec.structs import replace

from doorstep.engine.api import LoraSpec, Loss, SampleParams
from doorstep.engine.local import LocalEngine
from doorstep.errors import EngineError, EngineUnavailable

GOOD = ROWS[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [1, 2, 96, 4]}, "row 1: tokens has the id 96, outside the vocabulary of 96"),
        ({"targets": [1, -1, 3, 4]}, "row 1: targets has the id -1"),
        ({"targets": [1, 2]}, "row 1: targets has 2 entries, tokens has 4"),
        ({"weights": [1.0]}, "row 1: weights has 1 entries, tokens has 4"),
        ({"weights": None}, "row 1: weights is missing"),
        ({"weights": [1.0, math.nan, 1.0, 1.0]}, "row 1: weights has an entry that is not a finite number"),
        ({"tokens": [], "targets": [], "weights": []}, "row 1: tokens has 0 entries"),
        ({"tokens": [1] * 193}, "row 1: tokens has 193 entries; random takes 1 to 192"),
    ],
)
async def test_a_row_that_cannot_be_trained_on_is_named(engine, change, message):
    await engine.create_adapter("a", LoraSpec(rank=2))
    with pytest.raises(EngineError, match=message) as caught:
        await engine.forward_backward("a", [GOOD, replace(GOOD, **change)], CROSS_ENTROPY)
    assert caught.value.category == "user"
    assert (await engine.optim_step("a", RATE))["grad_norm"] == 0


@pytest.mark.parametrize(
    ("rows", "loss", "message"),
    [
        ([GOOD], Loss(name="dro"), "loss 'dro' is not served here"),
        ([GOOD], Loss(name="ppo", config={"beta": 1.0}), "ppo has no setting beta"),
        ([], CROSS_ENTROPY, "no rows"),
        (
            [replace(GOOD, inputs={k: v for k, v in GOOD.inputs.items() if k != "logprobs"})],
            Loss(name="ppo"),
            "row 0: logprobs is missing",
        ),
    ],
)
async def test_a_call_that_cannot_be_trained_on_says_why(engine, rows, loss, message):
    await engine.create_adapter("a", LoraSpec(rank=2))
    with pytest.raises(EngineError, match=message):
        await engine.forward_backward("a", rows, loss)


async def test_gradients_that_are_not_finite_leave_the_weights_alone(engine):
    await trained(engine, "a")
    before = (await engine.score("a", [1, 2, 3])).logprobs
    far = replace(GOOD, logprobs=[-1000.0] * 4, advantages=[1.0] * 4)
    await engine.forward_backward("a", [far], Loss(name="importance_sampling"))
    with pytest.raises(EngineError, match="not finite"):
        await engine.optim_step("a", RATE)
    assert (await engine.score("a", [1, 2, 3])).logprobs == before
    await train(engine, "a")
    assert (await engine.score("a", [1, 2, 3])).logprobs != before


@pytest.mark.parametrize(
    ("prompt", "change", "n", "message"),
    [
        ([], {}, 1, "the prompt has 0 tokens"),
        ([1] * 192, {}, 1, "the prompt has 192 tokens; random takes 1 to 191"),
        ([96], {}, 1, "the prompt has the id 96"),
        ([1], {"max_tokens": 0}, 1, "max_tokens must be at least 1"),
        ([1], {}, 0, "n and max_tokens"),
        ([1], {"temperature": -1.0}, 1, "temperature"),
        ([1], {"top_p": 0.0}, 1, "top_p"),
        ([1], {"stop": [[]]}, 1, "empty stop"),
    ],
)
async def test_a_request_that_cannot_be_sampled_says_why(engine, prompt, change, n, message):
    with pytest.raises(EngineError, match=message):
        await sample(engine, None, prompt, replace(SampleParams(max_tokens=3), **change), n)


async def test_adapters_that_are_not_there_or_already_are(engine):
    await engine.create_adapter("a", LoraSpec(rank=2))
    with pytest.raises(EngineError, match="there is an adapter a already"):
        await engine.create_adapter("a", LoraSpec(rank=2))
    await engine.drop_adapter("a")
    for call in (engine.drop_adapter("a"), engine.score("a", [1]), train(engine, "a")):
        with pytest.raises(EngineError, match="there is no adapter a; create or load it first"):
            await call
    with pytest.raises(EngineError, match="there is no adapter a"):
        await sample(engine, "a", [1], SampleParams(max_tokens=1))


@pytest.mark.parametrize("spec", [LoraSpec(rank=0), LoraSpec(alpha=0), LoraSpec(rank=513)])
async def test_a_spec_out_of_bounds(engine, spec):
    with pytest.raises(EngineError, match="rank must be 1 to 512, alpha above 0"):
        await engine.create_adapter("a", spec)


async def test_a_spec_that_trains_nothing(engine):
    with pytest.raises(EngineError, match="train nothing"):
        await engine.create_adapter("a", LoraSpec(train_attn=False, train_mlp=False, train_unembed=False))


async def test_a_closed_engine_is_unavailable(folder):
    engine = await LocalEngine.start(folder, "random")
    await engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        (await engine.score(None, [1, 2])).logprobs


async def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(EngineError, match="it must have config"):
        await LocalEngine.start(tmp_path, "x")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(EngineError, match="model type 'gpt2' is not served here"):
        await LocalEngine.start(tmp_path, "x")
