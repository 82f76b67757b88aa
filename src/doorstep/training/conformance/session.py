"""What checks share: the server under test, a client session with it, and words for data and results of the SDK."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from doorstep.training.conformance.checks import Wrong, expect

Array = npt.NDArray[np.float64]

TOKENS = [117, 42, 99, 123, 64, 200, 31, 77, 150, 88]  # single bytes or short words in about every vocabulary
OTHER = [65, 201, 33, 118, 54, 90]
SMALLEST_CHANGE = 0.005  # of a log-probability, to tell it from rounding in bfloat16
LARGEST_CHANGE = 0.2  # up to where a step is about linear


@dataclass(frozen=True)
class Target:
    """The server under test and who asks."""

    url: str
    key: str
    model: str
    second_key: str = ""


class Session:
    """A client session, and what its checks share, made when first asked for."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._clients: list[Any] = []

    @cached_property
    def service(self) -> Any:
        """The client of this session."""
        return self.connect()

    def connect(self, key: str = "", **options: Any) -> Any:
        """Return a further client, closed with this session."""
        client = connect(self.target.url, key or self.target.key, **options)
        self._clients.append(client)
        return client

    @cached_property
    def rest(self) -> Any:
        """A client for what is listed."""
        return rest_client(self.service, self.target.url, self.target.key)

    @cached_property
    def trainer(self) -> Any:
        """A model that nothing has trained; checks that train make their own by ``fresh``."""
        return self.fresh()

    @cached_property
    def sampler(self) -> Any:
        """A client that samples from the base model."""
        return done(self.service.create_sampling_client(base_model=self.target.model))

    def fresh(self, **options: Any) -> Any:
        """Make a model to train; the same each time unless options say otherwise."""
        options = {"rank": 8, "seed": 7} | options
        return done(self.service.create_lora_training_client(base_model=self.target.model, **options))

    @cached_property
    def step(self) -> float:
        """How far to follow gradients of the usual data: little enough to be linear, far enough to be seen."""
        for step in (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5):
            change = self.change(lambda trainer: done(trainer.forward_backward(usual(), "cross_entropy")), step)
            if SMALLEST_CHANGE < np.abs(change).max() < LARGEST_CHANGE:
                return step
        raise Wrong("no step size moves log-probabilities a little: gradients or optim_step are wrong")

    def change(self, leave_gradients: Callable[[Any], Any], step: float | None = None) -> Array:
        """Return the change of the usual data's log-probabilities when gradients are followed a small way."""
        trainer = self.fresh()
        before = now(trainer)
        leave_gradients(trainer)
        done(trainer.optim_step(plain_step(self.step if step is None else step)))
        return now(trainer) - before

    def close(self) -> None:
        """End what was begun here, as far as the server lets it end."""
        for client in self._clients:
            if hasattr(client, "close"):
                with suppress(Exception):  # whether a session can be closed is a check of its own
                    client.close("success").result()


def sdk_class(name: str) -> Any:
    """Return a public class of the SDK, wherever this version has it: older ones only hand some out."""
    import tinker
    from tinker.lib.public_interfaces import rest_client

    return getattr(tinker, name, None) or getattr(rest_client, name, None)


def connect(url: str, key: str, **options: Any) -> Any:
    """Return a client of the server."""
    return sdk_class("ServiceClient")(base_url=url, api_key=key, **options)


def rest_client(service: Any, url: str, key: str) -> Any:
    """Return the client for what is listed: one of its own, or in older SDKs that of a session."""
    try:
        return sdk_class("RestClient")(base_url=url, api_key=key)
    except TypeError:
        return service.create_rest_client()


def done(future: Any) -> Any:
    """Return what a call comes to. Where newer SDKs return a future, some older ones return the thing itself."""
    return future.result() if hasattr(future, "result") else future


# Data


def prompt(tokens: Sequence[int] = TOKENS) -> Any:
    """Return tokens as the model's input."""
    import tinker

    return tinker.ModelInput.from_ints(list(tokens))


def datum(tokens: Sequence[int] = TOKENS, **inputs: Any) -> Any:
    """Return a datum whose targets are its next tokens, unless given; without other inputs all count alike."""
    import tinker

    targets = inputs.pop("target_tokens", list(tokens[1:]))
    inputs = inputs or {"weights": [1.0] * (len(tokens) - 1)}
    return tinker.Datum(model_input=prompt(tokens[:-1]), loss_fn_inputs={"target_tokens": targets} | inputs)


def usual() -> list[Any]:
    """Return the two datums that most checks train on."""
    return [datum(TOKENS), datum(OTHER)]


def sampling(tokens: int = 8, **options: Any) -> Any:
    """Return sampling parameters."""
    import tinker

    return tinker.SamplingParams(max_tokens=tokens, **options)


def plain_step(step: float, clip: float = 0.0) -> Any:
    """Return AdamW parameters under which a step goes ``step`` times the gradient, as plain descent does.

    A large eps outweighs the gradient in AdamW's denominator, so that its scale is to be seen from outside.
    """
    import tinker

    return tinker.AdamParams(learning_rate=step * 1e6, beta1=0.0, beta2=0.0, eps=1e6, grad_clip_norm=clip)


def adam(learning_rate: float = 1e-3, **options: Any) -> Any:
    """Return AdamW parameters with the defaults of the API."""
    import tinker

    return tinker.AdamParams(learning_rate=learning_rate, **options)


# Results


def array(tensor: Any) -> Array:
    """Return a tensor of the SDK in its shape."""
    if hasattr(tensor, "to_numpy"):
        return np.asarray(tensor.to_numpy(), dtype=float)
    return np.asarray(tensor.data, dtype=float).reshape(tensor.shape or [-1])


def logprobs(output: Any) -> list[Array]:
    """Return the log-probabilities of each datum."""
    for index, one in enumerate(output.loss_fn_outputs):
        expect("logprobs" in one, f"the output of datum {index} has no logprobs")
    return [array(one["logprobs"]) for one in output.loss_fn_outputs]


def loss(output: Any) -> float:
    """Return the sum of the losses."""
    expect("loss:sum" in output.metrics, f"no metric loss:sum among {sorted(output.metrics)}")
    return float(output.metrics["loss:sum"])


def now(trainer: Any) -> Array:
    """Return the log-probabilities of the usual data now, one after the other."""
    return np.concatenate(scores(trainer, usual()))


def scores(trainer: Any, data: list[Any]) -> list[Array]:
    """Return the log-probabilities of data now."""
    return logprobs(done(trainer.forward(data, "cross_entropy")))
