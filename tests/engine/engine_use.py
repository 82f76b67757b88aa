"""What the engine's tests do with an engine."""

import asyncio
from functools import partial
from random import Random

import tiny_models
from msgspec.structs import replace

from doorstep.engine.api import AdamParams, Engine, LoraSpec, Loss, SampleParams, Token, TrainRow
from doorstep.engine.runtime import Task

CROSS_ENTROPY = Loss(name="cross_entropy")
RATE = AdamParams(learning_rate=0.01)


def tokens(length: int, seed: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(tiny_models.VOCABULARY) for _ in range(length)]


def row(length: int, seed: int, prompt: int = 3) -> TrainRow:
    """A row with every field; its first ``prompt`` positions do not count."""
    random = Random(seed)
    text = tokens(length + 1, seed)
    counted = [0.0] * prompt + [1.0] * (length - prompt)
    return TrainRow(
        tokens=text[:-1],
        targets=text[1:],
        inputs={
            "weights": [weight * random.uniform(-0.5, 1) for weight in counted],
            "logprobs": [-random.uniform(1, 6) for _ in counted],
            "advantages": [weight * random.uniform(-1, 1) for weight in counted],
        },
    )


def samples(prompt: int, answers: list[int], seed: int) -> list[TrainRow]:
    """Rows of one prompt with answers of some lengths."""
    start = tokens(prompt, seed)
    rows = [row(prompt + length, 100 * seed + index, prompt=prompt - 1) for index, length in enumerate(answers)]
    return [replace(each, tokens=start + each.tokens[prompt:]) for each in rows]


ROWS = [row(length, seed) for seed, length in enumerate((7, 20, 4, 13))]


async def trained(engine: Engine, name: str, steps: int = 3, spec: LoraSpec = LoraSpec(rank=4)) -> None:  # noqa: B008
    """Make an adapter that differs from the base."""
    await engine.create_adapter(name, spec)
    for _ in range(steps):
        await train(engine, name)


async def train(engine: Engine, name: str) -> None:
    await engine.forward_backward(name, ROWS, CROSS_ENTROPY)
    await engine.optim_step(name, RATE)


def run(runtime, adapter, rows=ROWS, loss=CROSS_ENTROPY):
    """Train an adapter on rows in one call, without an engine around it."""
    return together(runtime, [(adapter, rows, loss)])[0]


def together(runtime, calls):
    """Do calls of different adapters together; return their results."""
    tasks = [Task(adapter, partial(runtime.merged, adapter), rows, loss, False) for adapter, rows, loss in calls]
    for _ in runtime.train(tasks):
        pass
    return [task.done for task in tasks]


Sampled = list[list[tuple[int, float]]]


async def sample(engine: Engine, adapter: str | None, prompt: list[int], params: SampleParams, n: int = 1) -> Sampled:
    """Return (id, logprob) of each token of each sample."""
    found: Sampled = [[] for _ in range(n)]
    async for event in engine.sample(adapter, prompt, params, n):
        if isinstance(event, Token):
            found[event.index].append((event.id, event.logprob))
    return found


async def all_at_once(engine: Engine, jobs: list[tuple[str | None, list[int], SampleParams, int]]) -> list[Sampled]:
    return await asyncio.gather(*(sample(engine, *job) for job in jobs))
