"""LoRA of rank 0 trains the model's own parameters: transformers and torch as oracles, and folders that they load."""

import pytest
import torch
from engine_use import CROSS_ENTROPY, RATE, ROWS, run, sample, together, train, trained

from doorstep.engine.api import AdamParams, LoraSpec, SampleParams
from doorstep.engine.steps import optim_step
from doorstep.errors import EngineError

FULL = LoraSpec(rank=0)
PARTS = [
    FULL,
    LoraSpec(rank=0, train_mlp=False, train_unembed=False),
    LoraSpec(rank=0, train_attn=False, train_unembed=False),
    LoraSpec(rank=0, train_attn=False, train_mlp=False),
]
STEP = AdamParams(learning_rate=0.003, weight_decay=0.01)


def loss_of(model):
    total = 0
    for row in ROWS:
        log_p = torch.log_softmax(model(torch.tensor([row.tokens])).logits[0], -1)
        lp = log_p.gather(1, torch.tensor(row.targets)[:, None]).flatten()
        total = total - (lp * torch.tensor(row.inputs["weights"])).sum()
    return total


def fresh(model, folder):
    return type(model).from_pretrained(folder)


def test_the_whole_model_has_the_gradients_of_transformers(runtime, model, folder):
    full, oracle = runtime.adapter(FULL), fresh(model, folder)
    result = run(runtime, full)
    loss = loss_of(oracle)
    loss.backward()
    assert result.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    gradients = full.parameters(full.gradient)
    assert set(gradients) == {name for name, _ in oracle.named_parameters()}
    for name, parameter in oracle.named_parameters():
        theirs = parameter.grad
        torch.testing.assert_close(gradients[name], theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()) + 1e-6)


def test_the_whole_model_steps_as_torch_does(runtime, model, folder):
    full, oracle = runtime.adapter(FULL), fresh(model, folder)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=0.003, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.01)
    for _ in range(3):
        run(runtime, full)
        for name, gradient in full.parameters(full.gradient.clone()).items():
            oracle.get_parameter(name).grad = gradient
        optim_step(full, STEP)
        optimizer.step()
    for name, ours in full.parameters(full.flat).items():
        torch.testing.assert_close(ours, oracle.get_parameter(name).detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("spec", PARTS)
async def test_a_saved_model_loads_in_transformers_and_says_the_same(engine, model, tmp_path, spec):
    await trained(engine, "a", spec=spec)
    await engine.save("a", str(tmp_path / "a"), optimizer=False)
    other = fresh(model, tmp_path / "a")
    text = ROWS[1].tokens
    with torch.no_grad():
        log_p = torch.log_softmax(other(torch.tensor([text])).logits[0, :-1], -1)
    theirs = log_p.gather(1, torch.tensor(text[1:])[:, None]).flatten()
    scores = (await engine.score("a", text)).logprobs
    torch.testing.assert_close(torch.tensor(scores[1:]), theirs, rtol=0, atol=5e-5)
    assert scores != (await engine.score(None, text)).logprobs


@pytest.mark.parametrize("spec", PARTS)
def test_a_spec_chooses_what_is_trained(runtime, spec):
    full = runtime.adapter(spec)
    before = runtime.adapter(spec).parameters(full.flat.clone())
    run(runtime, full)
    optim_step(full, RATE)
    changed = {name for name, now in full.parameters(full.flat).items() if not torch.equal(now, before[name])}
    assert changed == set(full.shapes)


@pytest.mark.parametrize("spec", PARTS[:2])
async def test_a_saved_training_goes_on_bit_for_bit(engine, tmp_path, spec):
    await trained(engine, "a", spec=spec)
    await engine.save("a", str(tmp_path / "half"), optimizer=True)
    await train(engine, "a")
    expected = await engine.save("a", str(tmp_path / "whole"), optimizer=True)
    assert await engine.load("b", str(tmp_path / "half"), optimizer=True) == spec
    await train(engine, "b")
    assert await engine.save("b", str(tmp_path / "again"), optimizer=True) == expected


async def test_an_untrained_one_is_the_base_and_a_copy_stays_as_it_was(engine):
    params = SampleParams(max_tokens=9, seed=1, stop=[])
    await engine.create_adapter("a", FULL)
    await engine.copy_adapter("a", "then")
    await train(engine, "a")
    base = await sample(engine, None, [3, 4], params)
    assert await sample(engine, "then", [3, 4], params) == base
    assert await sample(engine, "a", [3, 4], params) != base


async def test_a_model_of_another_base_is_refused(engine, tmp_path, model):
    await engine.create_adapter("a", FULL)
    await engine.save("a", str(tmp_path / "a"), optimizer=False)
    narrower = type(model.config)(**model.config.to_dict() | {"intermediate_size": 16})
    type(model)(narrower).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "SHA256SUMS").unlink()  # changed on purpose
    with pytest.raises(EngineError, match="made from another base"):
        await engine.load("b", str(tmp_path / "a"), optimizer=False)


def test_a_full_model_beside_adapters_gets_what_it_gets_alone(runtime):
    full, alone, adapter = runtime.adapter(FULL), runtime.adapter(FULL), runtime.adapter(LoraSpec(rank=2))
    mixed = together(runtime, [(adapter, ROWS, CROSS_ENTROPY), (full, ROWS, CROSS_ENTROPY)])
    assert mixed[1] == run(runtime, alone)
    assert torch.equal(full.gradient, alone.gradient)
