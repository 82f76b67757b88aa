"""Checks of what is saved: it loads as it was saved, with or without its optimizer, and elsewhere."""

from typing import Any

import numpy as np

from doorstep.training.conformance.checks import check, expect, near, refused
from doorstep.training.conformance.session import Array, Session, adam, datum, done, logprobs, usual

SAME = 1e-3


@check("TrainingClient.save_state")
def _save(session: Session) -> None:
    path = done(session.trainer.save_state("first", ttl_seconds=86_400)).path
    expect(path == f"tinker://{session.trainer.model_id}/weights/first", f"path {path}")


@check("a saved name is not overwritten, unless told", "TrainingClient.save_state:overwrite")
def _overwrite(session: Session) -> None:
    trainer = session.fresh()
    path = done(trainer.save_state("again")).path
    refused(lambda: done(trainer.save_state("again")), "a name that is taken")
    expect(done(trainer.save_state("again", overwrite=True)).path == path, "overwrite gives another path")


@check("ServiceClient.create_training_client_from_state")
def _from_state(session: Session) -> None:
    trainer, path = _saved(session)
    again = done(session.service.create_training_client_from_state(path))
    expect(again.model_id != trainer.model_id, "it is the same model, not a new one")
    near(_now(again), _now(trainer), "log-probabilities", SAME)


@check("ServiceClient.create_training_client_from_state_with_optimizer")
def _with_optimizer(session: Session) -> None:
    trainer, path = _saved(session)
    again = done(session.service.create_training_client_from_state_with_optimizer(path))
    for one in (trainer, again):
        _step(one)
    near(_now(again), _now(trainer), "after a further step", SAME)


@check("without the optimizer's state a step is another", "ServiceClient.create_training_client_from_state")
def _without_optimizer(session: Session) -> None:
    trainer, path = _saved(session)
    again = done(session.service.create_training_client_from_state(path))
    for one in (trainer, again):
        _step(one)
    expect(np.abs(_now(again) - _now(trainer)).max() > SAME, "the optimizer's state was loaded as well")


@check("TrainingClient.load_state")
def _load(session: Session) -> None:
    trainer, path = _saved(session)
    other = session.fresh()
    done(other.load_state(path))
    near(_now(other), _now(trainer), "log-probabilities", SAME)


@check("TrainingClient.load_state_with_optimizer")
def _load_with_optimizer(session: Session) -> None:
    trainer, path = _saved(session)
    other = session.fresh()
    done(other.load_state_with_optimizer(path))
    for one in (trainer, other):
        _step(one)
    near(_now(other), _now(trainer), "after a further step", SAME)


@check("a checkpoint outlives its session")
def _outlives(session: Session) -> None:
    first = session.connect()
    trainer = done(first.create_lora_training_client(base_model=session.target.model, rank=4))
    _step(trainer)
    path, before = done(trainer.save_state("kept")).path, _now(trainer)
    if hasattr(first, "close"):
        first.close("success").result()
    near(_now(done(session.service.create_training_client_from_state(path))), before, "log-probabilities", SAME)


@check("TrainingClient.save_weights_external", "RestClient.get_external_weights_urls")
def _external(session: Session) -> None:
    trainer, _ = _saved(session)
    path = done(trainer.save_weights_external("out")).path
    expect("/external_weights/" in path, f"path {path}")
    expect(done(session.rest.get_external_weights_urls(path)), "no addresses to fetch the files from")


def _saved(session: Session) -> tuple[Any, str]:
    """Return a model after two steps, and where it was saved."""
    trainer = session.fresh()
    for _ in range(2):
        _step(trainer)
    return trainer, done(trainer.save_state("saved")).path


def _step(trainer: Any) -> None:
    done(trainer.forward_backward(usual(), "cross_entropy"))
    done(trainer.optim_step(adam(1e-2)))


def _now(trainer: Any) -> Array:
    return logprobs(done(trainer.forward([datum()], "cross_entropy")))[0]
