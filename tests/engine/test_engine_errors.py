"""What cannot work is refused with the row, the field and the way out, and changes nothing."""

import math

import pytest
from engine_use import CROSS_ENTROPY, RATE, ROWS, sample, train, trained
from msgspec.structs import replace

from doorstep.engine.api import LoraSpec, Loss, SampleParams
from doorstep.engine.local import LocalEngine
from doorstep.errors import EngineError, EngineUnavailable

GOOD = ROWS[2]


def with_inputs(**inputs):
    return replace(GOOD, inputs={"weights": [1.0] * 4} | inputs)


WITHOUT_LOGPROBS = replace(GOOD, inputs={"advantages": [1.0] * 4})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(GOOD, tokens=[1, 2, 96, 4]), "row 1: tokens has the id 96, outside the vocabulary of 96"),
        (replace(GOOD, targets=[1, -1, 3, 4]), "row 1: targets has the id -1"),
        (replace(GOOD, targets=[1, 2]), "row 1: targets has 2 entries, tokens has 4"),
        (with_inputs(weights=[1.0]), "row 1: weights has 1 entries, tokens has 4"),
        (with_inputs(weights=[1.0, math.nan, 1.0, 1.0]), "row 1: weights has an entry that is not a finite number"),
        (replace(GOOD, tokens=[], targets=[], inputs={"weights": []}), "row 1: tokens has 0 entries"),
        (replace(GOOD, tokens=[1] * 193), "row 1: tokens has 193 entries; random takes 1 to 192"),
    ],
)
async def test_a_row_that_cannot_be_trained_on_is_named(engine, bad, message):
    await engine.create_adapter("a", LoraSpec(rank=2))
    with pytest.raises(EngineError, match=message) as caught:
        await engine.forward_backward("a", [with_inputs(), bad], CROSS_ENTROPY)
    assert caught.value.category == "user"
    assert (await engine.optim_step("a", RATE))["grad_norm"] == 0


@pytest.mark.parametrize(
    ("rows", "loss", "message"),
    [
        ([GOOD], Loss(name="hinge"), "loss 'hinge' is not served here"),
        ([GOOD], Loss(name="ppo", config={"beta": 1.0}), "ppo has no setting beta"),
        ([], CROSS_ENTROPY, "no rows"),
        ([with_inputs()] * 250_001, CROSS_ENTROPY, "the call has 1000004 targets; one takes 1000000, send several"),
        ([WITHOUT_LOGPROBS], Loss(name="ppo"), "row 0: logprobs is missing"),
    ],
)
async def test_a_call_that_cannot_be_trained_on_says_why(engine, rows, loss, message):
    await engine.create_adapter("a", LoraSpec(rank=2))
    with pytest.raises(EngineError, match=message):
        await engine.forward_backward("a", rows, loss)


async def test_gradients_that_are_not_finite_leave_the_weights_alone(engine):
    await trained(engine, "a")
    before = (await engine.score("a", [1, 2, 3])).logprobs
    far = replace(GOOD, inputs={"logprobs": [-1000.0] * 4, "advantages": [1.0] * 4})
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


@pytest.mark.parametrize("spec", [LoraSpec(rank=-1), LoraSpec(alpha=0), LoraSpec(rank=513)])
async def test_a_spec_out_of_bounds(engine, spec):
    with pytest.raises(EngineError, match="rank must be 0 to 512, alpha above 0"):
        await engine.create_adapter("a", spec)


async def test_a_spec_that_trains_nothing(engine):
    with pytest.raises(EngineError, match="train nothing"):
        await engine.create_adapter("a", LoraSpec(train_attn=False, train_mlp=False, train_unembed=False))


async def test_a_closed_engine_is_unavailable(folder):
    engine = await LocalEngine.start(folder, "random")
    await engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        await engine.score(None, [1, 2])


async def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(EngineError, match="it must have config"):
        await LocalEngine.start(tmp_path, "x")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(EngineError, match="cannot be loaded"):
        await LocalEngine.start(tmp_path, "x")


async def test_cuda_where_there_is_none_is_told(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EngineError, match="set device to cpu or auto"):
        await LocalEngine.start(folder, "x", device="cuda")
