"""Checks of what a RestClient lists and changes: sessions, runs, checkpoints."""

from typing import Any

from doorstep.training.conformance.checks import NotTried, check, expect, refused
from doorstep.training.conformance.session import Session, done, prompt, sampling

HOURS = 3600
PROJECT = "conformance"


@check("RestClient.get_training_run")
def _run(session: Session) -> None:
    trainer = session.trainer
    run = done(session.rest.get_training_run(trainer.model_id))
    expect(run.training_run_id == trainer.model_id, f"asked for {trainer.model_id}, got {run.training_run_id}")
    expect(run.is_lora and run.lora_rank == 8, f"is_lora {run.is_lora}, rank {run.lora_rank}")


@check("RestClient.get_training_run_by_tinker_path")
def _run_by_path(session: Session) -> None:
    run = done(session.rest.get_training_run_by_tinker_path(_state(session)))
    expect(run.training_run_id == session.trainer.model_id, f"run {run.training_run_id}")


@check("RestClient.get_weights_info_by_tinker_path")
def _weights(session: Session) -> None:
    info = done(session.rest.get_weights_info_by_tinker_path(_state(session)))
    expect(info.base_model and info.lora_rank == 8, f"base {info.base_model}, rank {info.lora_rank}")


@check("RestClient.list_training_runs")
def _runs(session: Session) -> None:
    wanted = session.trainer.model_id
    answer = done(session.rest.list_training_runs(limit=20))
    expect(wanted in [run.training_run_id for run in answer.training_runs], f"{wanted} is not in the newest 20")
    expect(len(done(session.rest.list_training_runs(limit=1)).training_runs) == 1, "limit=1 gives another number")
    session.fresh()
    second = done(session.rest.list_training_runs(limit=1, offset=1)).training_runs
    expect([run.training_run_id for run in second] == [wanted], "offset=1 does not give the second newest")


@check("RestClient.list_checkpoints")
def _checkpoints(session: Session) -> None:
    path = _state(session)
    found = done(session.rest.list_checkpoints(session.trainer.model_id)).checkpoints
    expect(path in [one.tinker_path for one in found], f"{path} is not listed")


@check("RestClient.list_user_checkpoints")
def _user_checkpoints(session: Session) -> None:
    path = _state(session)
    found = done(session.rest.list_user_checkpoints(limit=100)).checkpoints
    expect(path in [one.tinker_path for one in found], f"{path} is not listed")


@check("RestClient.delete_checkpoint")
def _delete(session: Session) -> None:
    path = _state(session, "to-delete")
    run, _, checkpoint = path.removeprefix("tinker://").partition("/")
    done(session.rest.delete_checkpoint(run, checkpoint))
    _gone(session, path)


@check("RestClient.delete_checkpoint_from_tinker_path")
def _delete_by_path(session: Session) -> None:
    path = done(session.trainer.save_weights_for_sampler("to-delete")).path
    done(session.rest.delete_checkpoint_from_tinker_path(path))
    _gone(session, path)


@check("RestClient.publish_checkpoint_from_tinker_path")
def _publish(session: Session) -> None:
    path = _state(session, "public")
    done(session.rest.publish_checkpoint_from_tinker_path(path))
    expect(_listed(session, path).public, "it is not listed as public")


@check("RestClient.unpublish_checkpoint_from_tinker_path")
def _unpublish(session: Session) -> None:
    path = _state(session, "private-again")
    done(session.rest.publish_checkpoint_from_tinker_path(path))
    done(session.rest.unpublish_checkpoint_from_tinker_path(path))
    expect(not _listed(session, path).public, "it is still listed as public")


@check("RestClient.set_checkpoint_ttl_from_tinker_path")
def _ttl(session: Session) -> None:
    path = _state(session, "short-lived")
    done(session.rest.set_checkpoint_ttl_from_tinker_path(path, 2 * HOURS))
    expect(_listed(session, path).expires_at is not None, "it has no time to expire")
    done(session.rest.set_checkpoint_ttl_from_tinker_path(path, None))
    expect(_listed(session, path).expires_at is None, "it still has a time to expire")


@check("RestClient.copy_weights")
def _copy(session: Session) -> None:
    path = _state(session, "to-copy")
    copied = done(session.rest.copy_weights(path, PROJECT))
    expect(copied.startswith("tinker://") and copied != path, f"the copy's path is {copied}")


@check("ServiceClient.copy_weights")
def _copy_of_service(session: Session) -> None:
    path = _state(session, "to-copy-too")
    copied = done(session.connect(project_id=PROJECT).copy_weights(path))
    expect(copied != path, "the copy has the path of the original")


@check("RestClient.get_session")
def _session(session: Session) -> None:
    found = done(session.rest.get_session(_session_id(session)))
    expect(session.trainer.model_id in found.training_run_ids, f"its runs are {found.training_run_ids}")


@check("RestClient.list_sessions")
def _sessions(session: Session) -> None:
    found = [_id_of(one) for one in done(session.rest.list_sessions(limit=20)).sessions]
    expect(_session_id(session) in found, "this session is not in the newest 20")


@check("RestClient.search_sessions")
def _search(session: Session) -> None:
    from tinker import types

    found = done(session.rest.search_sessions(types.SessionSearchRequest(session_id=_session_id(session)))).sessions
    expect([_id_of(one) for one in found] == [_session_id(session)], f"found {found}")


@check("RestClient.assign_session_project")
def _project(session: Session) -> None:
    done(session.rest.assign_session_project(_session_id(session), PROJECT))


@check("RestClient.export_session_trace")
def _trace(session: Session) -> None:
    expect(done(session.rest.export_session_trace(_session_id(session))), "no address of the trace")


@check("RestClient.get_sampler")
def _sampler(session: Session) -> None:
    path = done(session.trainer.save_weights_for_sampler("named")).path
    client = done(session.service.create_sampling_client(model_path=path))
    done(client.sample(prompt(), 1, sampling(1)))
    sampler_id = client._sampling_session_id  # there is no public way to it
    found = done(session.rest.get_sampler(sampler_id))
    expect(found.model_path == path, f"its path is {found.model_path}, not {path}")


@check("RestClient.whoami")
def _who(session: Session) -> None:
    try:
        expect(done(session.rest.whoami()), "nobody")
    except Exception as error:
        if "JWT" in str(error) or "jwt" in str(error):
            raise NotTried("the server gives no tokens that say who one is (pjwt_auth_enabled)") from None
        raise


def _state(session: Session, name: str = "listed") -> str:
    """Return the path of a checkpoint of the shared model; save it when it is not there yet."""
    trainer = session.trainer
    known: dict[str, str] = session.__dict__.setdefault("saved_states", {})
    if name not in known:
        known[name] = done(trainer.save_state(name)).path
    return known[name]


def _listed(session: Session, path: str) -> Any:
    for one in done(session.rest.list_checkpoints(session.trainer.model_id)).checkpoints:
        if one.tinker_path == path:
            return one
    raise AssertionError(f"{path} is not listed")


def _gone(session: Session, path: str) -> None:
    found = done(session.rest.list_checkpoints(session.trainer.model_id)).checkpoints
    expect(path not in [one.tinker_path for one in found], "it is still listed")
    refused(lambda: done(session.rest.get_weights_info_by_tinker_path(path)), "what was deleted")


def _session_id(session: Session) -> str:
    return str(session.trainer.model_id).partition(":")[0]


def _id_of(one: Any) -> str:
    return str(getattr(one, "session_id", one))
