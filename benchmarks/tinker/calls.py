"""Time the calls of a Tinker server, one after another, through the public SDK that is installed beside this script.

    python benchmarks/tinker/calls.py --url http://127.0.0.1:8000 --model tiny --rounds 20

Prints one JSON object: per call the milliseconds of the first time and the median of the rest. A call that the server
cannot do has its error instead. Runs with SDKs from 0.24 on, so that servers that serve only old ones can be timed.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from random import Random
from typing import Any

ROWS, LENGTH, NEW = 8, 16, 16
VOCABULARY = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    os.environ["TINKER_TELEMETRY"] = "0"
    os.environ.setdefault("TINKER_API_KEY", "tml-benchmark")
    print(json.dumps(measure(arguments.url, arguments.model, arguments.rounds, arguments.rank)))


def measure(url: str, model: str, rounds: int, rank: int) -> dict[str, Any]:
    import tinker
    from tinker import types

    service = tinker.ServiceClient(base_url=url)
    clients: list[Any] = []
    created = timed(lambda: clients.append(made(service.create_lora_training_client(base_model=model, rank=rank))), 2)
    trainer = clients[-1]
    random = Random(0)
    texts = [[random.randrange(6, VOCABULARY) for _ in range(LENGTH + 1)] for _ in range(ROWS)]
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(text[:-1]),
            loss_fn_inputs={"target_tokens": text[1:], "weights": [1.0] * LENGTH},
        )
        for text in texts
    ]
    adam = types.AdamParams(learning_rate=1e-4)
    prompt = types.ModelInput.from_ints(texts[0])
    params = types.SamplingParams(max_tokens=NEW, temperature=1.0, stop=[])
    sampler: list[Any] = []

    def step() -> None:
        """Both are submitted before either is waited for, as the cookbook does."""
        first = trainer.forward_backward(data, "cross_entropy")
        second = trainer.optim_step(adam)
        first.result()
        second.result()

    def version() -> None:
        sampler[:] = [made(trainer.save_weights_and_get_sampling_client())]

    def sample(n: int = 1) -> None:
        sampler[0].sample(prompt, num_samples=n, sampling_params=params).result()

    def many() -> None:
        waiting = [sampler[0].sample(prompt, num_samples=1, sampling_params=params) for _ in range(64)]
        for each in waiting:
            each.result()

    def loop() -> None:
        step()
        version()
        sample()

    calls: dict[str, Callable[[], object]] = {
        "forward_backward": lambda: trainer.forward_backward(data, "cross_entropy").result(),
        "forward": lambda: trainer.forward(data, "cross_entropy").result(),
        "optim_step": lambda: trainer.optim_step(adam).result(),
        "forward_backward and optim_step": step,
        "save_weights_and_get_sampling_client": version,
        "sample 16 tokens": sample,
        "sample 4 x 16 tokens": lambda: sample(4),
        "64 samples of 16 tokens": many,
        "step, new version, sample": loop,
        "compute_logprobs": lambda: sampler[0].compute_logprobs(prompt).result(),
        "save_state": lambda: trainer.save_state(f"state{time.time_ns()}").result(),
    }
    found = {"create_lora_training_client": created}
    found |= {name: timed(call, rounds) for name, call in calls.items()}
    return {"sdk": tinker.__version__, "calls": found}


def made(client: Any) -> Any:
    """Return a client; newer SDKs give a future of it."""
    return client.result() if hasattr(client, "result") else client


def timed(call: Callable[[], object], rounds: int) -> dict[str, Any]:
    times = []
    try:
        for _ in range(rounds + 1):
            began = time.perf_counter()
            call()
            times.append((time.perf_counter() - began) * 1000)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"first_ms": round(times[0], 1), "median_ms": round(statistics.median(times[1:]), 2)}


if __name__ == "__main__":
    main()
