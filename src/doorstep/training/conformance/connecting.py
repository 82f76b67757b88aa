"""Checks of what a client does first and last: connect, learn what is served, make clients, close."""

from doorstep.training.conformance.checks import check, expect
from doorstep.training.conformance.session import Session, done, prompt, sampling


@check("RestClient.get_server_capabilities")
def _capabilities(session: Session) -> None:
    names = [model.model_name for model in done(session.rest.get_server_capabilities()).supported_models]
    expect(session.target.model in names, f"{session.target.model} is not among the models it names: {names}")


@check("ServiceClient.get_server_capabilities")
def _capabilities_of_service(session: Session) -> None:
    expect(session.service.get_server_capabilities().supported_models, "no supported models")


@check("ServiceClient.create_rest_client")
def _rest_of_service(session: Session) -> None:
    done(session.service.create_rest_client().list_training_runs(limit=1))


@check("ServiceClient.create_lora_training_client")
def _create(session: Session) -> None:
    expect(session.trainer.model_id, "the model has no id")


@check("ServiceClient.create_lora_training_client, parts of the model", "TrainingClient.get_info")
def _create_parts(session: Session) -> None:
    trainer = session.fresh(rank=4, train_mlp=False, train_unembed=False, user_metadata={"made": "by conformance"})
    rank = trainer.get_info().lora_rank
    expect(rank == 4, f"asked for rank 4, got {rank}")


@check("ServiceClient.create_sampling_client")
def _create_sampler(session: Session) -> None:
    done(session.sampler.sample(prompt(), 1, sampling(1)))


@check("sessions are apart: two clients of one key each have their own models")
def _apart(session: Session) -> None:
    other = done(session.connect().create_lora_training_client(base_model=session.target.model, rank=4))
    expect(other.model_id != session.trainer.model_id, "the models of two sessions have the same id")


@check("ServiceClient.close")
def _close(session: Session) -> None:
    client = session.connect()
    done(client.create_sampling_client(base_model=session.target.model))
    client.close("success", detail="a check").result()
