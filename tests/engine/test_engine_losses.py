"""Each loss against its formula in double precision, through autograd."""

import pytest
import torch

from doorstep.engine.losses import KINDS, Inputs

N = 200


def inputs() -> tuple[torch.Tensor, Inputs]:
    generator = torch.Generator().manual_seed(4)
    lp = -torch.rand(N, generator=generator, dtype=torch.float64) * 3
    q = lp + torch.randn(N, generator=generator, dtype=torch.float64) * 0.4
    weights, advantages = torch.randn(2, N, generator=generator, dtype=torch.float64)
    return lp, Inputs(weights, q, advantages)


def clamped(ratio, low, high):
    return torch.maximum(torch.minimum(ratio, torch.tensor(high)), torch.tensor(low))


def reference(name, lp, given, low, high):
    ratio = torch.exp(lp - given.logprobs)
    if name == "cross_entropy":
        return -(lp * given.weights)
    if name == "importance_sampling":
        return -(ratio * given.advantages)
    if name == "ppo":
        return -torch.minimum(ratio * given.advantages, clamped(ratio, low, high) * given.advantages)
    return -(clamped(ratio, low, high).detach() * lp * given.advantages)


@pytest.mark.parametrize(
    ("name", "config", "low", "high"),
    [
        ("cross_entropy", {}, 0, 0),
        ("importance_sampling", {}, 0, 0),
        ("ppo", {}, 0.8, 1.2),
        ("ppo", {"clip_low_threshold": 0.7, "clip_high_threshold": 1.28}, 0.7, 1.28),
        ("cispo", {}, 0.0, 4.0),
        ("cispo", {"clip_high_threshold": 1.1}, 0.0, 1.1),
    ],
)
def test_value_and_gradient_are_those_of_the_formula(name, config, low, high):
    lp, given = inputs()
    lp.requires_grad_()
    expected = reference(name, lp, given, float(low), float(high))
    expected.sum().backward()
    value = KINDS[name].function(lp.detach().float(), Inputs(*(each.float() for each in given)), config)
    torch.testing.assert_close(value.loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(value.gradient.double(), lp.grad, rtol=1e-5, atol=1e-6)


def test_where_the_ratio_leaves_its_bounds_ppo_gives_no_gradient():
    lp, given = inputs()
    ratio = torch.exp(lp - given.logprobs)
    outside = ((ratio > 1.2) & (given.advantages > 0)) | ((ratio < 0.8) & (given.advantages < 0))
    gradient = KINDS["ppo"].function(lp, given, {}).gradient
    assert outside.any()
    assert torch.equal(gradient == 0, outside)
