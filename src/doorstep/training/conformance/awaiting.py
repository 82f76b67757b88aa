"""Checks of the ways to call that programs on an event loop use: what is awaited, and the older ``…_async`` methods."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from doorstep.training.conformance.checks import check, expect, near
from doorstep.training.conformance.session import Session, adam, done, loss, prompt, sampling, scores, usual

STATE = "awaited"


@check("training that is awaited, two steps ahead of its results")
def _awaited(session: Session) -> None:
    trainer = session.fresh()

    async def train() -> list[float]:
        sent = []
        for _ in range(2):
            sent.append(trainer.forward_backward(usual(), "cross_entropy"))
            trainer.optim_step(adam())
        return [loss(await _awaitable(one)) for one in sent]

    first, second = asyncio.run(train())
    expect(second < first, f"the second step's loss is {second:.4g}, the first one's {first:.4g}")


@check("samples that are awaited all at once")
def _gathered(session: Session) -> None:
    sampler = session.sampler

    async def sample() -> list[int]:
        asked = [sampler.sample(prompt(), 2, sampling(1 + index, stop=[])) for index in range(8)]
        return [len(answer.sequences[1].tokens) for answer in [await _awaitable(one) for one in asked]]

    expect(asyncio.run(sample()) == list(range(1, 9)), "samples are of other lengths than asked for")


@check("TrainingClient.forward_async")
def _forward(session: Session) -> None:
    output = _both(lambda: session.trainer.forward_async(usual(), "cross_entropy"))
    near(loss(output), -sum(one.sum() for one in scores(session.trainer, usual())), "loss:sum")


@check("TrainingClient.forward_backward_async", "TrainingClient.optim_step_async")
def _train(session: Session) -> None:
    trainer = session.fresh()
    first = loss(_both(lambda: trainer.forward_backward_async(usual(), "cross_entropy")))
    _both(lambda: trainer.optim_step_async(adam()))
    expect(loss(done(trainer.forward(usual(), "cross_entropy"))) < first, "the loss does not fall")


@check("TrainingClient.forward_backward_custom_async")
def _custom(session: Session) -> None:
    def total(_data: Any, values: list[Any]) -> tuple[Any, dict[str, float]]:
        return -sum(one.sum() for one in values), {"rows": float(len(values))}

    output = _both(lambda: session.fresh().forward_backward_custom_async(usual(), total))
    expect(output.metrics["rows"] == 2, f"the loss has seen {output.metrics['rows']} rows")


@check("TrainingClient.save_state_async", "ServiceClient.create_training_client_from_state_with_optimizer_async")
def _state(session: Session) -> None:
    path = _both(lambda: session.trainer.save_state_async(STATE)).path
    again = _both(lambda: session.service.create_training_client_from_state_with_optimizer_async(path))
    near(scores(again, usual())[0], scores(session.trainer, usual())[0], "log-probabilities")


@check("TrainingClient.save_weights_for_sampler_async", "ServiceClient.create_sampling_client_async")
def _sampler(session: Session) -> None:
    path = _both(lambda: session.trainer.save_weights_for_sampler_async(STATE)).path
    sampler = _both(lambda: session.service.create_sampling_client_async(model_path=path))
    expect(_both(lambda: sampler.sample_async(prompt(), 1, sampling(2))).sequences, "no sequences")


@check("TrainingClient.save_weights_and_get_sampling_client_async", "SamplingClient.compute_logprobs_async")
def _snapshot(session: Session) -> None:
    sampler = _both(session.trainer.save_weights_and_get_sampling_client_async)
    got = _both(lambda: sampler.compute_logprobs_async(prompt()))
    near(got[1:], done(session.sampler.compute_logprobs(prompt()))[1:], "log-probabilities", 0.05)


@check("ServiceClient.create_lora_training_client_async", "TrainingClient.get_info_async")
def _create(session: Session) -> None:
    made = _both(lambda: session.service.create_lora_training_client_async(base_model=session.target.model, rank=4))
    expect(_both(made.get_info_async).lora_rank == 4, "another rank than asked for")


@check("RestClient.list_training_runs_async", "RestClient.list_checkpoints_async")
def _lists(session: Session) -> None:
    run = session.trainer.model_id
    runs = _both(lambda: session.rest.list_training_runs_async(limit=20)).training_runs
    expect(run in [one.training_run_id for one in runs], f"{run} is not listed")
    _both(lambda: session.rest.list_checkpoints_async(run))


def _awaitable(future: Any) -> Awaitable[Any]:
    """Return what can be awaited of a call; in some versions that is not what it returns."""
    return future if isinstance(future, Awaitable) else asyncio.wrap_future(future)


def _both(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return what a call comes to that is awaited, and whose answer in some versions is awaited once more."""

    async def wait() -> Any:
        answer = await call()
        return await answer.result_async() if hasattr(answer, "result_async") else answer

    return asyncio.run(wait())
