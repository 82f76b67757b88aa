"""Checks of each call of a TrainingClient: it answers, and in the right shape."""

import math
from typing import Any

import numpy as np

from doorstep.training.conformance.checks import check, expect, near
from doorstep.training.conformance.session import (
    TOKENS,
    Session,
    adam,
    datum,
    done,
    logprobs,
    loss,
    prompt,
    scores,
    usual,
)

CHUNKED = 1100  # datums: the SDK cuts a call after 1024


@check("TrainingClient.get_info")
def _info(session: Session) -> None:
    info = session.trainer.get_info()
    expect(info.model_id == session.trainer.model_id, f"it is called {info.model_id} here")
    expect(info.model_data.model_name, "model_data names no model")
    expect(info.lora_rank == 8, f"asked for rank 8, it says {info.lora_rank}")


@check("TrainingClient.get_tokenizer")
def _tokenizer(session: Session) -> None:
    tokenizer = session.trainer.get_tokenizer()
    text = "the tokenizer of the model"
    ids = tokenizer.encode(text, add_special_tokens=False)
    expect(tokenizer.decode(ids) == text, f"{text!r} comes back as {tokenizer.decode(ids)!r}")


@check("TrainingClient.forward")
def _forward(session: Session) -> None:
    output = done(session.trainer.forward(usual(), "cross_entropy"))
    lengths = [len(one) for one in logprobs(output)]
    wanted = [one.model_input.length for one in usual()]
    expect(lengths == wanted, f"log-probabilities of {lengths} tokens for datums of {wanted}")


@check("TrainingClient.forward_backward")
def _forward_backward(session: Session) -> None:
    output = done(session.trainer.forward_backward(usual(), "cross_entropy"))
    near(loss(output), -sum(one.sum() for one in logprobs(output)), "loss:sum")


@check("TrainingClient.optim_step")
def _optim_step(session: Session) -> None:
    trainer = session.fresh()
    done(trainer.forward_backward(usual(), "cross_entropy"))
    before = scores(trainer, usual())
    done(trainer.optim_step(adam()))
    gain = sum(one.sum() for one in scores(trainer, usual())) - sum(one.sum() for one in before)
    expect(gain > 0, f"after a step the data is less likely, by {-gain:.4g}")


@check("TrainingClient.forward_backward_custom")
def _custom(session: Session) -> None:
    def squares(_data: Any, values: list[Any]) -> tuple[Any, dict[str, float]]:
        total = sum((one**2).sum() for one in values)
        return total, {"squares": float(total)}

    output = done(session.fresh().forward_backward_custom(usual(), squares))
    near(output.metrics["squares"], sum((one**2).sum() for one in scores(session.trainer, usual())), "the loss")


@check("ServiceClient.create_custom_loss", "TrainingClient.forward_backward_custom")
def _custom_handle(session: Session) -> None:
    def weighted_squares(logprobs: Any, weights: Any) -> tuple[Any, dict[str, Any]]:
        total = (logprobs * logprobs * weights).sum()
        return total, {"custom/squares:sum": total}

    handle = done(session.service.create_custom_loss(weighted_squares, {"logprobs": 1, "weights": 1}))
    output = done(session.fresh().forward_backward_custom(usual(), handle))
    wanted = sum((one**2).sum() for one in scores(session.trainer, usual()))
    near(output.metrics["custom/squares:sum"], wanted, "custom/squares:sum")


@check("Dimuon: a model with the other optimizer trains", "ServiceClient.create_lora_training_client:optimizer")
def _dimuon(session: Session) -> None:
    import tinker

    trainer = session.fresh(optimizer=tinker.DimuonOptimizerConfig())
    before = scores(trainer, usual())
    done(trainer.forward_backward(usual(), "cross_entropy"))
    done(trainer.optim_step(tinker.DimuonParams(learning_rate=1e-3)))
    gain = sum(one.sum() for one in scores(trainer, usual())) - sum(one.sum() for one in before)
    expect(gain > 0, f"after a step the data is less likely, by {-gain:.4g}")


@check("a call of many chunks equals calls of one datum each")
def _chunks(session: Session) -> None:
    data = [datum(TOKENS[: 2 + index % 8]) for index in range(CHUNKED)]
    output = done(session.trainer.forward(data, "cross_entropy"))
    got = logprobs(output)
    expect(len(got) == CHUNKED, f"{len(got)} outputs for {CHUNKED} datums")
    alone = [scores(session.trainer, [one])[0] for one in data[:8]]
    near(np.concatenate(got), np.concatenate([alone[index % 8] for index in range(CHUNKED)]), "log-probabilities", 0.02)
    near(loss(output), -sum(one.sum() for one in got), "loss:sum over the chunks")


@check("calls sent without waiting come back in the order of sending")
def _order(session: Session) -> None:
    trainer = session.fresh()
    sent = []
    for _ in range(4):
        sent.append(trainer.forward_backward(usual(), "cross_entropy"))
        trainer.optim_step(adam())
    losses = [loss(one.result()) for one in sent]
    expect(losses == sorted(losses, reverse=True), f"losses of steps sent ahead do not fall: {losses}")


@check("a model that nothing trained is the base model")
def _base(session: Session) -> None:
    got = scores(session.trainer, [datum()])[0]
    near(got, done(session.sampler.compute_logprobs(prompt()))[1:], "log-probabilities", 0.05)


@check("a padded batch changes nothing: a short datum beside a long one scores as alone")
def _batch(session: Session) -> None:
    short, long = datum(TOKENS[:3]), datum(TOKENS * 12)
    beside = scores(session.trainer, [short, long, short])
    near(beside[0], scores(session.trainer, [short])[0], "the first", 0.02)
    near(beside[2], beside[0], "the last", 0.02)


@check("loss values are finite numbers where tokens have no weight")
def _no_weight(session: Session) -> None:
    output = done(session.trainer.forward([datum(weights=[0.0] * 9)], "cross_entropy"))
    expect(loss(output) == 0 and math.isfinite(logprobs(output)[0].sum()), f"loss:sum is {loss(output)}, not 0")
