"""Training against the oracles: transformers for log-probabilities, PEFT for gradients, torch for AdamW."""

import pytest
import torch
from engine_use import CROSS_ENTROPY, RATE, ROWS, run, samples, train, trained
from peft import PeftModel

from doorstep.engine.api import AdamParams, LoraSpec, Loss, TrainRow
from doorstep.engine.steps import optim_step

pytestmark = [
    # peft 0.21 reads a property that transformers 5.24 has renamed
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # the adapter changes the head alone, and that is meant
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

SPEC = LoraSpec(rank=4, seed=3)


def log_probabilities(model, row):
    scores = model(torch.tensor([row.tokens])).logits[0]
    return torch.log_softmax(scores, -1).gather(1, torch.tensor(row.targets)[:, None]).flatten()


def weighted(model):
    """The cross-entropy of ROWS, one row at a time, through transformers."""
    return -sum((log_probabilities(model, row) * torch.tensor(row.inputs["weights"])).sum() for row in ROWS)


async def test_the_base_gives_the_log_probabilities_of_transformers(engine, model):
    await engine.create_adapter("a", SPEC)
    result = await engine.forward_backward("a", ROWS, CROSS_ENTROPY, forward_only=True)
    for row, logprobs in zip(ROWS, result.logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), log_probabilities(model, row), rtol=0, atol=2e-5)
    assert result.metrics["loss:sum"] == pytest.approx(weighted(model).item(), rel=1e-5)


@pytest.mark.parametrize(
    "spec", [SPEC, LoraSpec(rank=30), LoraSpec(rank=3, train_mlp=False), LoraSpec(rank=3, train_attn=False, alpha=9)]
)
async def test_an_adapter_computes_and_learns_what_it_does_in_peft(engine, runtime, model, folder, tmp_path, spec):
    await trained(engine, "a", spec=spec)
    await engine.save("a", str(tmp_path / "a"), optimizer=False)
    adapter = runtime.load(tmp_path / "a", optimizer=False)
    run(runtime, adapter)
    peft = PeftModel.from_pretrained(type(model).from_pretrained(folder), tmp_path / "a", is_trainable=True)
    loss = weighted(peft)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in peft.named_parameters() if parameter.requires_grad}
    assert len(gradients) == 2 * len(adapter.sites)
    for site, ours in zip(adapter.sites, adapter.views(adapter.gradient), strict=True):
        for part, gradient in (("lora_A", ours.a), ("lora_B", ours.b)):
            theirs = gradients[f"base_model.model.{site.name}.{part}.default.weight"]
            torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()) + 1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "importance_sampling", "ppo", "cispo"])
def test_calls_add_up(runtime, name):
    whole, parts = runtime.adapter(SPEC), runtime.adapter(SPEC)
    for adapter in (whole, parts):
        adapter.factors[0].b.fill_(0.01)
    rows = ROWS + samples(20, [5, 1, 9, 3], seed=1) + samples(11, [4, 4], seed=2)
    once = run(runtime, whole, rows, Loss(name=name))
    several = [run(runtime, parts, [row], Loss(name=name)) for row in rows]
    assert sum(each.metrics["loss:sum"] for each in several) == pytest.approx(once.metrics["loss:sum"], rel=1e-5)
    torch.testing.assert_close(parts.gradient, whole.gradient, rtol=1e-4, atol=1e-5 * float(whole.gradient.abs().max()))


def test_several_targets_a_position_are_as_many_calls(runtime):
    both, apart = runtime.adapter(SPEC), runtime.adapter(SPEC)
    one, other = [1.0, 0.0, -2.0], [0.5, 0.25, 1.0]
    pairs = [value for pair in zip(one, other, strict=True) for value in pair]
    wide = TrainRow(tokens=[7, 8, 9], targets=[1, 2, 3, 4, 5, 6], width=2, inputs={"weights": pairs})
    result = run(runtime, both, [wide, *ROWS])
    single = [
        TrainRow(tokens=[7, 8, 9], targets=targets, inputs={"weights": weights})
        for targets, weights in (([1, 3, 5], one), ([2, 4, 6], other))
    ]
    expected = run(runtime, apart, [*single, *ROWS])
    assert result.logprobs[0][::2] == pytest.approx(expected.logprobs[0], abs=1e-5)
    assert result.logprobs[0][1::2] == pytest.approx(expected.logprobs[1], abs=1e-5)
    assert result.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    torch.testing.assert_close(both.gradient, apart.gradient, rtol=1e-4, atol=1e-5 * float(apart.gradient.abs().max()))


def test_a_large_vocabulary_goes_through_the_head_in_parts(runtime, monkeypatch):
    whole, parts = runtime.adapter(SPEC), runtime.adapter(SPEC)
    expected = run(runtime, whole)
    monkeypatch.setattr("doorstep.engine.native.trainer.HEAD_ELEMENTS", 96 * 5)
    result = run(runtime, parts)
    for ours, theirs in zip(result.logprobs, expected.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    torch.testing.assert_close(parts.gradient, whole.gradient, rtol=1e-4, atol=1e-5 * float(whole.gradient.abs().max()))


async def test_a_copy_stays_what_its_source_was(engine):
    await trained(engine, "a", spec=SPEC)
    text = ROWS[1].tokens
    before = (await engine.score("a", text)).logprobs
    await engine.copy_adapter("a", "then")
    await train(engine, "a")
    assert (await engine.score("then", text)).logprobs == before
    await train(engine, "then")
    assert (await engine.optim_step("then", RATE))["step"] == 2  # an optimiser of its own, that began anew


async def test_forward_only_leaves_no_gradient(engine):
    await engine.create_adapter("a", SPEC)
    await engine.forward_backward("a", ROWS, CROSS_ENTROPY, forward_only=True)
    assert (await engine.optim_step("a", RATE))["grad_norm"] == 0


def test_positions_without_weight_have_log_probabilities_and_no_say(runtime):
    adapter = runtime.adapter(SPEC)
    silent = type(ROWS[0])(tokens=[1, 2, 3], targets=[2, 3, 4], inputs={"weights": [0.0, 0.0, 0.0]})
    result = run(runtime, adapter, [silent])
    assert len(result.logprobs[0]) == 3
    assert result.metrics["loss:sum"] == 0
    assert not adapter.gradient.any()


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_step_is_torchs_adamw(runtime, clip):
    adapter = runtime.adapter(SPEC)
    mirror = torch.nn.Parameter(adapter.flat.clone())
    settings = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    oracle = torch.optim.AdamW([mirror], **settings)
    for _ in range(3):
        adapter.gradient.normal_()
        mirror.grad = adapter.gradient.clone()
        if clip:
            torch.nn.utils.clip_grad_norm_([mirror], clip)
        oracle.step()
        params = AdamParams(learning_rate=0.02, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, grad_clip_norm=clip)
        optim_step(adapter, params)
    torch.testing.assert_close(adapter.flat, mirror.detach(), rtol=1e-6, atol=1e-7)


async def test_training_lowers_the_loss(engine):
    await engine.create_adapter("a", SPEC)
    rows = [
        type(row)(tokens=row.tokens, targets=row.targets, inputs={"weights": [1.0] * len(row.tokens)}) for row in ROWS
    ]
    losses = []
    for _ in range(8):
        losses.append((await engine.forward_backward("a", rows, CROSS_ENTROPY)).metrics["loss:sum"])
        metrics = await engine.optim_step("a", RATE)
    assert losses == sorted(losses, reverse=True)
    assert metrics["step"] == 8


async def test_adapters_do_not_touch_each_other_or_the_base(engine):
    await engine.create_adapter("a", SPEC)
    await engine.create_adapter("b", SPEC)
    text = ROWS[1].tokens
    before = (await engine.score("b", text)).logprobs, (await engine.score(None, text)).logprobs
    await train(engine, "a")
    assert ((await engine.score("b", text)).logprobs, (await engine.score(None, text)).logprobs) == before
    assert (await engine.score("a", text)).logprobs != before[0]
