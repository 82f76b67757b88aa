"""Learning through the Tinker API, to be seen: supervised learning, then reinforcement learning, on the shipped base.

    python benchmarks/learning.py

Starts a server and lets the unmodified ``tinker`` SDK train one adapter to add: a little on right answers, so that it
knows the form, then on what its own answers are worth (``r·A``, A the reward less the mean of the answers to one sum).
Prints both curves, and the part of sums that it gets right before, between and after; exit status 1 where it did not
learn. Takes about a minute on one core.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

os.environ["TINKER_TELEMETRY"] = "0"
import tinker
from tinker import types

STEPS, BATCH, SHOWN_RATE = 30, 32, 3e-3  # supervised: steps, sums of a step
ROUNDS, SUMS, GROUP, REWARDED_RATE = 60, 64, 8, 1e-3  # reinforcement: steps, sums of a step, answers to each


class Sum(NamedTuple):
    """Two numbers to add."""

    one: int
    other: int

    @property
    def question(self) -> str:
        return f"{self.one} + {self.other} ="

    @property
    def answer(self) -> str:
        return f" {self.one + self.other}\n"


def main() -> int:
    sums = [Sum(one, other) for one in range(10) for other in range(10)]
    random.seed(1)
    began = time.monotonic()
    with serving() as url:
        service = tinker.ServiceClient(base_url=url, api_key="tml-learning")
        pupil = Pupil(service.create_lora_training_client("tiny", rank=32, seed=1).result())
        right = [pupil.right(sums)]
        losses = [pupil.shown(random.sample(sums, BATCH)) for _ in range(STEPS)]
        right.append(pupil.right(sums))
        rewards = [pupil.rewarded(random.sample(sums, SUMS)) for _ in range(ROUNDS)]
        right.append(pupil.right(sums))
    learned = losses[-1] < losses[0] / 4 and right[2] > right[1] + 0.2
    curves = {"nats_a_token": every_fourth(losses), "reward": every_fourth(rewards)}
    found = {"right_before_between_after": right, **curves, "seconds": round(time.monotonic() - began)}
    print(json.dumps(found, indent=2))
    return 0 if learned else 1


class Pupil:
    """An adapter that learns."""

    def __init__(self, trainer: tinker.TrainingClient) -> None:
        self._trainer = trainer
        self._tokenizer = trainer.get_tokenizer()

    def shown(self, sums: list[Sum]) -> float:
        """Learn right answers; return the loss of a token."""
        data, count = [], 0
        for each in sums:
            question, answer = self._ids(each.question), self._ids(each.answer)
            tokens = question + answer
            weights = [0.0] * (len(question) - 1) + [1.0] * len(answer)
            data.append(datum(tokens, weights=weights))
            count += len(answer)
        return self._step(data, "cross_entropy", SHOWN_RATE).metrics["loss:sum"] / count

    def rewarded(self, sums: list[Sum]) -> float:
        """Learn from what answers are worth; return their mean reward."""
        data, total = [], 0.0
        for each, answers in zip(sums, self._answers(sums, GROUP, 1.0), strict=True):
            question = self._ids(each.question)
            rewards = [float(self._tokenizer.decode(answer.tokens) == each.answer) for answer in answers]
            mean = sum(rewards) / GROUP
            total += mean
            before = [0.0] * (len(question) - 1)
            for answer, reward in zip(answers, rewards, strict=True):
                if reward != mean:
                    advantages = before + [reward - mean] * len(answer.tokens)
                    data.append(
                        datum(question + answer.tokens, logprobs=before + answer.logprobs, advantages=advantages)
                    )
        if data:
            self._step(data, "importance_sampling", REWARDED_RATE)
        return total / len(sums)

    def right(self, sums: list[Sum]) -> float:
        """Return the part of sums whose likeliest answer is right."""
        answers = self._answers(sums, 1, 0.0)
        told = [self._tokenizer.decode(answer.tokens) for [answer] in answers]
        return sum(each.answer == answer for each, answer in zip(sums, told, strict=True)) / len(sums)

    def _answers(self, sums: list[Sum], count: int, temperature: float) -> list[list[Any]]:
        sampler = self._trainer.save_weights_and_get_sampling_client()
        seed = random.getrandbits(31)
        params = types.SamplingParams(max_tokens=6, temperature=temperature, stop=["\n"], seed=seed)
        prompts = [types.ModelInput.from_ints(self._ids(each.question)) for each in sums]
        futures = [sampler.sample(prompt, num_samples=count, sampling_params=params) for prompt in prompts]
        return [future.result().sequences for future in futures]

    def _step(self, data: list[types.Datum], loss: Any, rate: float) -> Any:
        result = self._trainer.forward_backward(data, loss)
        stepped = self._trainer.optim_step(types.AdamParams(learning_rate=rate))
        stepped.result()
        return result.result()

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def datum(tokens: list[int], **inputs: list[float]) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={"target_tokens": tokens[1:], **inputs}
    )


def every_fourth(values: list[float]) -> list[float]:
    return [round(value, 3) for value in (*values[:-1:4], values[-1])]


@contextmanager
def serving() -> Iterator[str]:
    """A server with the shipped base and a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "doorstep", "serve", "--model", "tiny", "--port", str(port), "--data", place]
        process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL)
        try:
            wait(f"{url}/api/v1/healthz", process)
            yield url
        finally:
            process.terminate()
            process.wait()


def wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            httpx.get(url, headers={"X-API-Key": "tml-learning"}).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the server was not ready within 30 s")


if __name__ == "__main__":
    sys.exit(main())
