"""Checks that each loss is what the API defines, by the log-probabilities that the server itself returns."""

from collections.abc import Callable
from typing import Any

import numpy as np

from doorstep.training.conformance.checks import check, expect, near
from doorstep.training.conformance.session import (
    TOKENS,
    Array,
    Session,
    array,
    datum,
    done,
    logprobs,
    loss,
    prompt,
    sampling,
    scores,
)

LOG_RATIOS = np.array([-1.0, -0.4, -0.1, 0.0, 0.0, 0.1, 0.4, 1.0, 2.0])
ADVANTAGES = np.array([1.0, -2.0, 1.0, 0.5, -1.0, -1.0, 2.0, 1.0, -1.0])
Formula = Callable[[Array, Array, Array], Array]


def policy_datum(session: Session, **more: Any) -> Any:
    """Return a datum for policy losses with chosen ratios between the model now and when it sampled."""
    then = scores(session.trainer, [datum()])[0] - LOG_RATIOS
    return datum(logprobs=then.tolist(), advantages=ADVANTAGES.tolist(), **more)


@check("cross_entropy: the sum of -log p times weight, negative weights too")
def _cross_entropy(session: Session) -> None:
    weights = np.array([1.0, 0.0, -0.5, 2.0, 0.0, 0.25, 1.0, -1.0, 3.0])
    output = done(session.trainer.forward([datum(weights=weights.tolist())], "cross_entropy"))
    near(loss(output), -(logprobs(output)[0] * weights).sum(), "loss:sum")


@check("cross_entropy: targets of shape [N, K]")
def _soft_targets(session: Session) -> None:
    targets = np.array([[token, other] for token, other in zip(TOKENS[1:], TOKENS[:-1], strict=True)])
    weights = np.linspace(0.1, 0.9, targets.size).reshape(targets.shape).astype(np.float32)
    output = done(session.trainer.forward([datum(target_tokens=targets, weights=weights)], "cross_entropy"))
    got = logprobs(output)[0]
    expect(got.shape == targets.shape, f"logprobs of shape {list(got.shape)} for targets of {list(targets.shape)}")
    near(got[:, 0], scores(session.trainer, [datum()])[0], "log-probabilities of the first column", 0.02)
    near(loss(output), -(got * weights).sum(), "loss:sum")


@check("cross_entropy: sparse targets")
def _sparse_targets(session: Session) -> None:
    import tinker

    crow, columns = list(range(10)), [index % 3 for index in range(9)]
    place = {"shape": [9, 8], "sparse_crow_indices": crow, "sparse_col_indices": columns}
    targets = tinker.TensorData(data=TOKENS[1:], dtype="int64", **place)
    weights = tinker.TensorData(data=[0.5] * 9, dtype="float32", **place)
    output = done(session.trainer.forward([datum(target_tokens=targets, weights=weights)], "cross_entropy"))
    near(loss(output), -0.5 * scores(session.trainer, [datum()])[0].sum(), "loss:sum", 0.01)


@check("importance_sampling: -ratio times advantage")
def _importance_sampling(session: Session) -> None:
    _equals(session, "importance_sampling", {}, lambda ratio, _now, advantage: -ratio * advantage)


@check("ppo: clipped at 0.8 and 1.2 unless told")
def _ppo(session: Session) -> None:
    _equals(session, "ppo", {}, _ppo_of(0.8, 1.2))


@check("ppo: clipped where told")
def _ppo_bounds(session: Session) -> None:
    _equals(session, "ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}, _ppo_of(0.5, 2.0))


@check("ppo: clip bounds for each token")
def _ppo_each(session: Session) -> None:
    low, high = np.linspace(0.3, 0.9, 9), np.linspace(1.1, 3.0, 9)
    more = {"clip_low_threshold": low.tolist(), "clip_high_threshold": high.tolist()}
    _equals(session, "ppo", {}, _ppo_of(low, high), **more)


@check("cispo: the clipped ratio is a constant before log p")
def _cispo(session: Session) -> None:
    def formula(ratio: Array, now: Array, advantage: Array) -> Array:
        loss: Array = -np.clip(ratio, 0.5, 2.0) * now * advantage
        return loss

    _equals(session, "cispo", {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}, formula)


@check("dro: a quadratic penalty of strength beta")
def _dro(session: Session) -> None:
    def formula(ratio: Array, now: Array, advantage: Array) -> Array:
        loss: Array = -(now * advantage - 0.05 / 2 * np.log(ratio) ** 2)
        return loss

    _equals(session, "dro", {"beta": 0.05}, formula)


@check("gspo: one ratio for the sequence, over its mask")
def _gspo(session: Session) -> None:
    mask = np.array([0.0, 0, 1, 1, 1, 1, 1, 1, 0])

    def formula(ratio: Array, _now: Array, advantage: Array) -> Array:
        whole = np.exp((np.log(ratio) * mask).sum() / mask.sum())
        loss: Array = -np.minimum(whole * advantage, np.clip(whole, 0.8, 1.2) * advantage) * mask
        return loss

    row = policy_datum(session, sequence_ratio_mask=mask.astype(np.float32))
    masked = np.where(mask > 0, ADVANTAGES, 0.0).tolist()
    row.loss_fn_inputs["advantages"] = datum(advantages=masked).loss_fn_inputs["advantages"]
    _compare(session, row, "gspo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}, formula)


@check(
    "stable_reinforce: trains on what was sampled, by its provenance",
    "ServiceClient.create_sampling_client:record_stability_info",
)
def _stable_reinforce(session: Session) -> None:
    import tinker

    trainer = session.fresh()
    sampler = done(trainer.save_weights_and_get_sampling_client(record_stability_info=True))
    (one,) = done(sampler.sample(prompt(), 1, sampling(6, stop=[]))).sequences
    name, given, made = one.sequence_id, len(TOKENS), len(one.tokens)
    row = datum(
        [*TOKENS, *one.tokens],
        logprobs=[0.0] * (given - 1) + list(one.logprobs),
        advantages=[0.0] * (given - 1) + [1.0] * made,
    ).with_provenance(
        model_input=[
            tinker.PromptProvenanceSpan(sequence_id=name, length=given),
            tinker.SampledProvenanceSpan(sequence_id=name, length=made - 1),
        ],
        loss_fn_inputs=[
            tinker.PromptProvenanceSpan(sequence_id=name, offset=1, length=given - 1),
            tinker.SampledProvenanceSpan(sequence_id=name, length=made),
        ],
    )
    before = scores(trainer, [datum([*TOKENS, *one.tokens])])[0][given - 1 :].sum()
    loss(done(trainer.forward_backward([row], "stable_reinforce")))
    done(trainer.optim_step(tinker.AdamParams(learning_rate=1e-3)))
    gain = scores(trainer, [datum([*TOKENS, *one.tokens])])[0][given - 1 :].sum() - before
    expect(gain > 0, f"what was rewarded is less likely after a step, by {-gain:.4g}")


def _ppo_of(low: Any, high: Any) -> Formula:
    def formula(ratio: Array, _now: Array, advantage: Array) -> Array:
        loss: Array = -np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)
        return loss

    return formula


def _equals(session: Session, name: str, config: dict[str, float], formula: Formula, **more: Any) -> None:
    _compare(session, policy_datum(session, **more), name, config, formula)


def _compare(session: Session, row: Any, name: str, config: dict[str, float], formula: Formula) -> None:
    """Compare a loss of the server with the formula on the log-probabilities that the server returns."""
    output = done(session.trainer.forward([row], name, config))
    now = logprobs(output)[0]
    then, advantages = (array(row.loss_fn_inputs[key]) for key in ("logprobs", "advantages"))
    near(loss(output), formula(np.exp(now - then), now, advantages).sum(), "loss:sum")
