"""Checks of gradients and the optimizer, through what a step does to log-probabilities.

A step with a large eps is plain descent (see ``session.plain_step``), so that sums, signs and clipping show.
"""

from typing import Any

import numpy as np

from doorstep.training.conformance.checks import check, expect, near
from doorstep.training.conformance.losses import ADVANTAGES, policy_datum
from doorstep.training.conformance.session import (
    Array,
    Session,
    adam,
    array,
    datum,
    done,
    loss,
    now,
    plain_step,
    scores,
    usual,
)

AGREE = 0.05  # share of the largest change
CLIP = 1e-3  # below every gradient's norm
LITTLE, MUCH = 0.005, 0.3  # of a loss that falls: seen well, and about linear


@check("the same seed makes the same model")
def _seed(session: Session) -> None:
    changes = [session.change(lambda trainer: _train(trainer, usual())) for _ in range(2)]
    _same(changes[0], changes[1])


@check("gradients are those of the loss that is told")
def _scale(session: Session) -> None:
    """Compare how the loss falls in a plain step and in one clipped to a known length.

    The first tells step x scale x norm^2, the second step x clip x norm: together the scale, which must be 1.
    """
    plain = -_fall(session, session.step) / session.step
    step = session.step / CLIP
    while not LITTLE < (falls := -_fall(session, step, CLIP)) < MUCH and session.step < step < session.step / CLIP**2:
        step *= 0.3 if falls >= MUCH else 3
    norm = falls / (step * CLIP)
    near(plain / norm**2, 1.0, "the gradient over that of loss:sum", 0.2)


@check("gradients of several calls add up")
def _adds(session: Session) -> None:
    def apart(trainer: Any) -> None:
        for one in usual():
            _train(trainer, [one])

    _same(session.change(apart), session.change(lambda trainer: _train(trainer, usual())))


@check("gradients are sums: a datum given twice counts twice")
def _sums(session: Session) -> None:
    twice = session.change(lambda trainer: _train(trainer, usual() + usual()))
    _same(twice, session.change(lambda trainer: _train(trainer, usual()), session.step * 2))


@check("a long datum and a short one each count by their tokens, not by their mean")
def _lengths(session: Session) -> None:
    together = session.change(lambda trainer: _train(trainer, usual()))
    long, short = usual()
    apart = [
        session.change(lambda trainer: _train(trainer, [long])),
        session.change(lambda trainer: _train(trainer, [short])),
    ]
    _same(together, apart[0] + apart[1], 0.15)


@check("weights scale gradients, and their sign turns them")
def _weights(session: Session) -> None:
    against = [datum(weights=[-1.0] * 9)]
    _same(
        session.change(lambda trainer: _train(trainer, against)),
        -session.change(lambda trainer: _train(trainer, [datum()])),
        0.15,
    )


@check("forward leaves no gradients")
def _forward_only(session: Session) -> None:
    _none(session.change(lambda trainer: done(trainer.forward(usual(), "cross_entropy"))))


@check("optim_step uses gradients up")
def _used_up(session: Session) -> None:
    def stepped(trainer: Any) -> None:
        _train(trainer, usual())
        done(trainer.optim_step(plain_step(session.step)))

    once = session.change(lambda trainer: _train(trainer, usual()))
    _same(session.change(stepped), once)


@check("grad_clip_norm bounds the gradients of all parameters together")
def _clip(session: Session) -> None:
    trainer = session.fresh()
    before = now(trainer)
    _train(trainer, usual())
    done(trainer.optim_step(plain_step(session.step, clip=1e-9)))
    _none(now(trainer) - before)


@check("weight_decay shrinks what was learned")
def _decay(session: Session) -> None:
    trainer = session.fresh()
    before = now(trainer)
    _train(trainer, usual())
    done(trainer.optim_step(adam(1e-2)))
    learned = np.abs(now(trainer) - before).max()
    done(trainer.optim_step(adam(0.1, beta1=0.0, beta2=0.0, eps=1.0, weight_decay=9.0)))
    left = np.abs(now(trainer) - before).max()
    expect(left < 0.5 * learned, f"of a change of {learned:.3g} a decay to a tenth leaves {left:.3g}")


@check("importance_sampling at a ratio of one has the gradient of cross_entropy")
def _importance_sampling(session: Session) -> None:
    then = scores(session.trainer, [datum()])[0]
    row = datum(logprobs=then.tolist(), advantages=ADVANTAGES.tolist())
    _same(_change_of(session, row, "importance_sampling"), _weighted(session, ADVANTAGES))


@check("ppo has no gradient where it is clipped")
def _ppo(session: Session) -> None:
    def unclipped(ratio: Array, advantage: Array) -> Array:
        return np.where(ratio * advantage <= np.clip(ratio, 0.8, 1.2) * advantage, ratio * advantage, 0.0)

    _same(_change_of(session, policy_datum(session), "ppo"), _weighted(session, unclipped(*_terms(session))))


@check("cispo has a gradient where it is clipped")
def _cispo(session: Session) -> None:
    ratio, advantage = _terms(session)
    got = _change_of(session, policy_datum(session), "cispo", {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0})
    _same(got, _weighted(session, np.clip(ratio, 0.5, 2.0) * advantage))


@check("dro has the gradient of its formula")
def _dro(session: Session) -> None:
    ratio, advantage = _terms(session)
    got = _change_of(session, policy_datum(session), "dro", {"beta": 0.5})
    _same(got, _weighted(session, advantage - 0.5 * np.log(ratio)))


@check("targets of shape [N, K] have the gradient of their columns", "TrainingClient.forward_backward")
def _soft_targets(session: Session) -> None:
    row = datum()
    targets = array(row.loss_fn_inputs["target_tokens"]).astype(int)
    both = np.stack([targets, targets[::-1]], axis=1)
    weights = np.stack([np.full(9, 0.75), np.full(9, 0.25)], axis=1).astype(np.float32)
    apart = [
        datum(weights=[0.75] * 9),
        datum(target_tokens=targets[::-1].tolist(), weights=[0.25] * 9),
    ]
    soft = session.change(lambda trainer: _train(trainer, [datum(target_tokens=both, weights=weights)]))
    _same(soft, session.change(lambda trainer: _train(trainer, apart)))


@check("a custom loss has the gradient of the built-in one", "TrainingClient.forward_backward_custom")
def _custom(session: Session) -> None:
    def cross_entropy(_data: Any, values: list[Any]) -> tuple[Any, dict[str, float]]:
        return -sum(one.sum() for one in values), {}

    got = session.change(lambda trainer: done(trainer.forward_backward_custom(usual(), cross_entropy)))
    _same(got, session.change(lambda trainer: _train(trainer, usual())))


def _train(trainer: Any, data: list[Any]) -> None:
    done(trainer.forward_backward(data, "cross_entropy"))


def _fall(session: Session, step: float, clip: float = 0.0) -> float:
    """Return by how much one step changes the loss."""
    trainer = session.fresh()
    before = loss(done(trainer.forward_backward(usual(), "cross_entropy")))
    done(trainer.optim_step(plain_step(step, clip)))
    return loss(done(trainer.forward(usual(), "cross_entropy"))) - before


def _terms(session: Session) -> tuple[Array, Array]:
    """Return the ratios and advantages of the datum for policy losses."""
    row = policy_datum(session)
    ratio: Array = np.exp(scores(session.trainer, [datum()])[0] - array(row.loss_fn_inputs["logprobs"]))
    return ratio, ADVANTAGES


def _change_of(session: Session, row: Any, name: str, config: dict[str, float] | None = None) -> Array:
    return session.change(lambda trainer: done(trainer.forward_backward([row], name, config)))


def _weighted(session: Session, weights: Array) -> Array:
    """Return the change that cross_entropy makes with these weights."""
    return session.change(lambda trainer: _train(trainer, [datum(weights=weights.tolist())]))


def _same(got: Array, wanted: Array, agree: float = AGREE) -> None:
    """Find the server wrong unless two steps do the same to log-probabilities."""
    size = np.abs(wanted).max()
    expect(size > 0, "the step that is compared with does nothing")
    off = np.abs(got - wanted).max()
    scale = float((got * wanted).sum() / (wanted * wanted).sum())
    expect(off <= agree * size + 1e-4, f"a step moves log-probabilities {scale:.3g} times as it should, or elsewhere")


def _none(change: Array) -> None:
    most = np.abs(change).max()
    expect(most < 1e-4, f"log-probabilities move by {most:.3g} where nothing should")
