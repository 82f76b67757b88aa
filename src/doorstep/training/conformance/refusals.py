"""Checks that what cannot work is refused: with category user, before it does harm, and the server goes on."""

from collections.abc import Callable
from typing import Any

from doorstep.training.conformance.checks import NotTried, check, expect, refused
from doorstep.training.conformance.session import (
    TOKENS,
    Session,
    adam,
    datum,
    done,
    prompt,
    sampling,
    scores,
)

BEYOND = 2_000_000  # no vocabulary is that large


def _refuses(session: Session, data: list[Any], what: str, loss: str = "cross_entropy", config: Any = None) -> None:
    """Check that training refuses, and that the model still works after it."""
    trainer = session.trainer
    refused(lambda: done(trainer.forward_backward(data, loss, config)), what)
    scores(trainer, [datum()])


@check("an unknown base model is refused")
def _base(session: Session) -> None:
    refused(lambda: done(session.service.create_lora_training_client(base_model="no/such")), "an unknown model")


@check("an unknown loss is refused")
def _loss(session: Session) -> None:
    _refuses(session, [datum()], "an unknown loss", "no_such_loss")


@check("an unknown setting of a loss is refused")
def _config(session: Session) -> None:
    row = datum(logprobs=[0.0] * 9, advantages=[1.0] * 9)
    _refuses(session, [row], "an unknown setting", "ppo", {"no_such_setting": 1.0})


@check("a token beyond the vocabulary is refused")
def _vocabulary(session: Session) -> None:
    _refuses(session, [datum([5, BEYOND, 7])], "a token beyond the vocabulary")


@check("weights of another length than the targets are refused")
def _length(session: Session) -> None:
    _refuses(session, [datum(weights=[1.0, 1.0])], "two weights for nine targets")


@check("targets of another length than the input are refused")
def _targets(session: Session) -> None:
    row = datum(target_tokens=TOKENS[:3], weights=[1.0] * 3)
    _refuses(session, [row], "three targets for nine tokens")


@check("a loss without what it needs is refused")
def _inputs(session: Session) -> None:
    _refuses(session, [datum()], "ppo without advantages", "ppo")


@check("a weight that is no number is refused")
def _nan(session: Session) -> None:
    _refuses(session, [datum(weights=[float("nan")] * 9)], "a weight of NaN")


@check("an empty datum is refused")
def _empty(session: Session) -> None:
    import tinker

    row = tinker.Datum(model_input=prompt([]), loss_fn_inputs={"target_tokens": [], "weights": []})
    _refuses(session, [row], "a datum without tokens")


@check("a bad datum is told by its number")
def _number(session: Session) -> None:
    data = [datum(), datum(), datum(weights=[1.0])]
    words = refused(lambda: done(session.trainer.forward_backward(data, "cross_entropy")), "a bad datum")
    expect("2" in words, f"the refusal does not say which datum: {words}")


@check("a refused call leaves no gradients")
def _no_gradients(session: Session) -> None:
    trainer = session.fresh()
    before = scores(trainer, [datum()])[0]
    data = [datum(), datum([5, BEYOND])]
    refused(lambda: done(trainer.forward_backward(data, "cross_entropy")), "a bad datum beside a good one")
    done(trainer.optim_step(adam(0.1, beta1=0.0, beta2=0.0, eps=1.0)))
    moved = abs(scores(trainer, [datum()])[0] - before).max()
    expect(moved < 1e-4, f"the good datum of a refused call moves log-probabilities by {moved:.3g}")


@check("an unknown path is refused")
def _path(session: Session) -> None:
    path = f"tinker://{session.trainer.model_id}/weights/no-such"
    refused(lambda: done(session.service.create_training_client_from_state(path)), "an unknown path")


@check("a path that tries to leave the store is refused")
def _outside(session: Session) -> None:
    path = "tinker://../../etc/weights/passwd"
    refused(lambda: done(session.service.create_training_client_from_state(path)), "a path with ..")


@check("a model of rank 0 or less is a full one or refused, never a crash")
def _rank(session: Session) -> None:
    refused(lambda: session.fresh(rank=-1), "rank -1")
    scores(session.trainer, [datum()])


@check("sampling refuses a negative number of tokens")
def _tokens(session: Session) -> None:
    _refuses_sampling(session, lambda: session.sampler.sample(prompt(), 1, sampling(-1)), "max_tokens -1")


@check("sampling refuses a negative temperature")
def _temperature(session: Session) -> None:
    asked = sampling(2, temperature=-1.0)
    _refuses_sampling(session, lambda: session.sampler.sample(prompt(), 1, asked), "temperature -1")


@check("sampling refuses a token beyond the vocabulary")
def _sample_vocabulary(session: Session) -> None:
    _refuses_sampling(session, lambda: session.sampler.sample(prompt([BEYOND]), 1, sampling(2)), "the token")


@check("sampling refuses an empty prompt")
def _sample_empty(session: Session) -> None:
    _refuses_sampling(session, lambda: session.sampler.sample(prompt([]), 1, sampling(2)), "an empty prompt")


@check("another key does not reach a checkpoint")
def _foreign(session: Session) -> None:
    path = done(session.trainer.save_state("mine")).path
    stranger = _stranger(session)
    refused(lambda: done(stranger.create_training_client_from_state(path)), "another's path")


@check("another key does not see a run")
def _foreign_run(session: Session) -> None:
    rest = _stranger(session).create_rest_client()
    refused(lambda: done(rest.get_training_run(session.trainer.model_id)), "another's run")
    seen = [run.training_run_id for run in done(rest.list_training_runs(limit=100)).training_runs]
    expect(session.trainer.model_id not in seen, "another's run is listed")


@check("another key does not train a model")
def _foreign_model(session: Session) -> None:
    stranger = done(_stranger(session).create_lora_training_client(base_model=session.target.model, rank=4))
    stranger.model_id = session.trainer.model_id
    refused(lambda: done(stranger.forward_backward([datum()], "cross_entropy")), "another's model")


def _refuses_sampling(session: Session, attempt: Callable[[], Any], what: str) -> None:
    refused(lambda: done(attempt()), what)
    done(session.sampler.sample(prompt(), 1, sampling(1)))


def _stranger(session: Session) -> Any:
    if not session.target.second_key:
        raise NotTried("give another key by --second-key to try this")
    return session.connect(session.target.second_key)
