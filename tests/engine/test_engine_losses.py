"""Each loss against its formula in double precision, through autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from doorstep.engine import kinds
from doorstep.engine.api import Loss, TrainRow
from doorstep.engine.losses import Given, bind, means
from doorstep.errors import EngineError

LENGTHS = [121, 1, 78]  # of three rows
N = sum(LENGTHS)


def case(loss: Loss, seed: int = 4, **inputs) -> tuple[torch.Tensor, Given]:
    generator = torch.Generator().manual_seed(seed)
    lp = -torch.rand(N, generator=generator, dtype=torch.float64) * 3
    q = lp + torch.randn(N, generator=generator, dtype=torch.float64) * 0.4
    weights, advantages = torch.randn(2, N, generator=generator, dtype=torch.float64)
    marks = (torch.arange(N) % 3 != 0).double()
    made = {"weights": weights, "logprobs": q, "advantages": advantages} | {
        "sequence_ratio_mask": marks,
        "sampled": marks,
    }
    bound = bind(loss)
    rows = [TrainRow(tokens=[1] * length, targets=[1] * length) for length in LENGTHS]
    gathered = bound.gather(rows)
    values = {name: made.get(name, value.double()) for name, value in gathered.inputs.items()} | inputs
    return lp, gathered._replace(inputs=values)


def clamped(ratio, low, high):
    return torch.maximum(torch.minimum(ratio, high), low)


def gspo(lp, values, low, high):
    fields = (values[name] for name in ("logprobs", "advantages", "sequence_ratio_mask"))
    total = lp.new_zeros(())
    for mine, q, advantages, mask, *bounds in zip(
        *(each.split(LENGTHS) for each in (lp, *fields, low, high)), strict=True
    ):
        mean = (mine.detach() - q)[mask != 0].mean()
        ratio = torch.exp(mean + mine - mine.detach())
        total = total - torch.minimum(ratio * advantages, clamped(ratio, *bounds) * advantages).sum()
    return total


def reference(loss, lp, values):
    q, advantages = values.get("logprobs"), values.get("advantages")
    low, high = values.get("clip_low_threshold"), values.get("clip_high_threshold")
    if loss.name == "cross_entropy":
        return -(lp * values["weights"]).sum()
    ratio = torch.exp(lp - q)
    if loss.name == "importance_sampling":
        return -(ratio * advantages).sum()
    if loss.name == "ppo":
        return -torch.minimum(ratio * advantages, clamped(ratio, low, high) * advantages).sum()
    if loss.name == "cispo":
        return -(clamped(ratio, low, high).detach() * lp * advantages).sum()
    if loss.name == "dro":
        return -(lp * advantages - loss.config.get("beta", 0.05) / 2 * (lp - q) ** 2).sum()
    if loss.name == "gspo":
        return gspo(lp, values, low, high)
    truncated = torch.minimum(ratio, torch.ones(())).detach() * advantages * lp
    divergence = ratio - 1 - (lp - q)
    return ((loss.config.get("kl_coeff", 0.0) * divergence - truncated) * values["sampled"]).sum()


@pytest.mark.parametrize(
    "loss",
    [
        *(Loss(name=name) for name in kinds.KINDS),
        Loss(name="ppo", config={"clip_low_threshold": 0.7, "clip_high_threshold": 1.28}),
        Loss(name="cispo", config={"clip_high_threshold": 1.1}),
        Loss(name="gspo", config={"clip_low_threshold": 0.9, "clip_high_threshold": 1.2}),
        Loss(name="dro", config={"beta": 0.7}),
        Loss(name="stable_reinforce", config={"kl_coeff": 0.3}),
    ],
    ids=lambda loss: " ".join([loss.name, *map(str, loss.config.values())]),
)
def test_value_and_gradient_are_those_of_the_formula(loss):
    lp, made = case(loss)
    lp.requires_grad_()
    expected = reference(loss, lp, made.inputs)
    expected.backward()
    value = bind(loss)(lp.detach(), made)
    torch.testing.assert_close(value.loss.sum(), expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value.gradient, lp.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["ppo", "cispo"])
def test_bounds_may_differ_from_token_to_token(name):
    loss = Loss(name=name)
    low, high = torch.rand(N).double(), 1 + torch.rand(N).double()
    lp, made = case(loss, clip_low_threshold=low, clip_high_threshold=high)
    lp.requires_grad_()
    expected = reference(loss, lp, made.inputs)
    expected.backward()
    value = bind(loss)(lp.detach(), made)
    torch.testing.assert_close(value.loss.sum(), expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value.gradient, lp.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", kinds.KINDS)
def test_single_precision_is_within_its_rounding(name):
    lp, made = case(Loss(name=name))
    single = made._replace(inputs={key: values.float() for key, values in made.inputs.items()})
    exact, rounded = bind(Loss(name=name))(lp, made), bind(Loss(name=name))(lp.float(), single)
    torch.testing.assert_close(rounded.loss.double(), exact.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rounded.gradient.double(), exact.gradient, rtol=1e-5, atol=1e-6)


def test_several_targets_a_position_are_summed_over():
    rows = [TrainRow(tokens=[1, 2], targets=[1, 2, 3] * 2, width=3, inputs={"weights": [0.5, 0.3, 0.2, 0, 0, 0]})]
    bound = bind(Loss(name="cross_entropy"))
    made = bound.gather(rows)
    lp = -torch.rand(2, 3)
    value = bound(lp, made)
    assert torch.equal(value.gradient, -torch.tensor(rows[0].inputs["weights"]).view(2, 3))
    assert torch.equal(value.loss.sum(), (lp * value.gradient).sum())
    assert made.counts.tolist() == [True, False]


@pytest.mark.parametrize("name", [name for name in kinds.KINDS if name != "gspo"])
def test_a_loss_may_be_taken_in_parts(name):
    bound = bind(Loss(name=name))
    lp, made = case(Loss(name=name))
    whole = bound(lp, made)
    parts = [bound(lp[span], made[span]) for span in (slice(0, 50), slice(50, 51), slice(51, N))]
    assert torch.equal(torch.cat([part.gradient for part in parts]), whole.gradient)
    assert torch.equal(torch.cat([part.loss for part in parts]), whole.loss)


@pytest.mark.parametrize("name", [name for name in kinds.KINDS if name != "dro"])
def test_where_a_position_does_not_count_its_gradient_is_zero(name):
    lp, made = case(Loss(name=name))
    made.inputs[bind(Loss(name=name)).kind.gate][::2] = 0
    gradient = bind(Loss(name=name))(lp, made).gradient[::2]
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo", "stable_reinforce"])
@given(st.floats(-1e30, 1e30))
def test_a_log_probability_that_stands_for_none_does_no_harm(name, stand_in):
    lp, made = case(Loss(name=name, config={"kl_coeff": 1.0} if name == "stable_reinforce" else {}))
    bound = bind(Loss(name=name, config={"kl_coeff": 1.0} if name == "stable_reinforce" else {}))
    for gate in {"advantages", "sampled"} & set(made.inputs):
        made.inputs[gate][7] = 0
    before = bound(lp, made)
    made.inputs["logprobs"][7] = stand_in
    after = bound(lp, made)
    assert torch.equal(after.loss, before.loss)
    assert torch.equal(after.gradient, before.gradient)


def test_where_the_ratio_leaves_its_bounds_ppo_gives_no_gradient():
    lp, made = case(Loss(name="ppo"))
    ratio, advantages = torch.exp(lp - made.inputs["logprobs"]), made.inputs["advantages"]
    outside = ((ratio > 1.2) & (advantages > 0)) | ((ratio < 0.8) & (advantages < 0))
    assert outside.any()
    assert torch.equal(bind(Loss(name="ppo"))(lp, made).gradient == 0, outside)


def test_inputs_that_a_row_leaves_out_have_their_defaults():
    ppo = Loss(name="ppo", config={"clip_low_threshold": 0.5})
    given = {"logprobs": [0.0] * 2, "advantages": [1.0] * 2}
    rows = [
        TrainRow(tokens=[1, 2], targets=[1, 2], inputs=given),
        TrainRow(tokens=[1, 2], targets=[1, 2], inputs=given | {"clip_low_threshold": [0.1, 0.2]}),
    ]
    made = bind(ppo).gather(rows).inputs
    torch.testing.assert_close(made["clip_low_threshold"], torch.tensor([0.5, 0.5, 0.1, 0.2]))
    torch.testing.assert_close(made["clip_high_threshold"], torch.full((4,), 1.2))
    assert bind(Loss(name="cross_entropy")).gather(rows).inputs["weights"].tolist() == [1.0] * 4


ROW = TrainRow(
    tokens=[1, 2],
    targets=[2, 3],
    inputs={name: [1.0, 1.0] for name in ("logprobs", "advantages", "sequence_ratio_mask", "sampled")},
)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ppo", {}, None),
        ("ppo", {"targets": [1]}, "targets has 1 entries, tokens has 2; there must be 1 a token"),
        ("ppo", {"targets": [1] * 4, "width": 2}, "targets has 2 entries a position; loss ppo takes one"),
        ("cross_entropy", {"targets": [1] * 4, "width": 2}, None),
        ("cispo", {"inputs": {"logprobs": [0.0, 0.0]}}, "advantages is missing; loss cispo needs logprobs, advantages"),
        ("dro", {"inputs": ROW.inputs | {"logprobs": [0.0]}}, "logprobs has 1 entries, tokens has 2; there must be 2"),
        ("dro", {"inputs": ROW.inputs | {"logprobs": [0.0, math.inf]}}, "logprobs has an entry that is not a finite"),
        ("gspo", {"inputs": ROW.inputs | {"sequence_ratio_mask": [0.0, 0.0]}}, "sequence_ratio_mask marks no position"),
    ],
)
def test_a_row_that_does_not_fit_is_told(name, change, message):
    from msgspec.structs import replace

    loss = Loss(name=name)
    problem = kinds.problem(replace(ROW, **change), loss, kinds.fields(loss))
    assert (problem or "").startswith(message or "")
    assert (problem is None) == (message is None)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Loss(name="dppo"), "loss 'dppo' is not served here; there are cross_entropy, "),
        (Loss(name="ppo", config={"beta": 1.0}), "ppo has no setting beta; it takes clip_low_threshold"),
        (Loss(name="cross_entropy", config={"x": 1.0}), "it takes no settings"),
        (Loss(name="dro", config={"beta": math.nan}), "beta must be a finite number"),
        (Loss(name="custom"), "needs its graph"),
    ],
)
def test_a_loss_that_is_not_served_is_told(loss, message):
    with pytest.raises(EngineError, match=message):
        bind(loss)


def test_metrics_of_a_call_are_sums_or_means_over_its_rows():
    assert means({"custom/a:sum": 6.0, "custom/b:mean": 6.0}, 4) == {"custom/a:sum": 6.0, "custom/b:mean": 1.5}
