"""Sampling beside ``transformers`` and PEFT: groups of samples, and ragged requests over one and several adapters.

Both sides do the same work in one run: the same shapes, prompts, numbers of tokens and threads. What ``generate`` can
do for ragged requests is to go adapter by adapter, the rows of one padded to the longest; ``transformers`` has
continuous batching for one set of weights. Times are the best of interleaved rounds: other programs only add to them.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from doorstep.engine.api import LoraSpec, SampleParams
from doorstep.engine.local import LocalEngine

GROUPS, SAMPLES, NEW = 24, 8, 40
REQUESTS, ADAPTERS = 64, 8
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


class Job(NamedTuple):
    """One request: which adapter, prompt, how many tokens, how many samples."""

    adapter: int
    prompt: list[int]
    new: int
    samples: int = 1


async def compare(folder: Path, threads: int, rounds: int, rank: int = 8) -> dict[str, Any]:
    """Return all figures as one object."""
    engine = await LocalEngine.start(folder, "base", threads)
    vocabulary = (await engine.info()).vocabulary
    for index in range(ADAPTERS):
        await engine.create_adapter(str(index), LoraSpec(rank=rank))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    peft = with_adapters(folder, rank)
    groups = [Job(0, ids(vocabulary, seed, 100, 140), NEW, SAMPLES) for seed in range(GROUPS)]
    figures: dict[str, Any] = {}
    sides = {"doorstep": lambda: serve(engine, groups), "generate": lambda: generate(plain, groups)}
    figures["groups"] = await best(sides, groups, rounds, threads)
    for count, adapters in [(1, 1), (8, 1), (8, 8), (64, 1), (64, 8)]:
        jobs = ragged(vocabulary, count, adapters)
        sides = {
            "doorstep": lambda jobs=jobs: serve(engine, jobs),
            "peft_by_adapter": lambda jobs=jobs: by_adapter(peft, jobs),
            "merged_by_adapter": lambda jobs=jobs: by_adapter(plain, jobs),
        }
        if adapters == 1:
            sides["continuous_batching"] = lambda jobs=jobs: continuous(plain, jobs)
        figures[f"{count}_requests_{adapters}_adapters"] = await best(sides, jobs, rounds, threads)
    figures["repeated_prompts"] = await repeated(engine, vocabulary)
    await engine.close()
    return figures


def with_adapters(folder: Path, rank: int) -> PeftModel:
    config = LoraConfig(r=rank, lora_alpha=32, target_modules=TARGETS)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config, "0")
    for index in range(1, ADAPTERS):
        model.add_adapter(str(index), config)
    return model.eval()


def ids(vocabulary: int, seed: int, low: int, high: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(6, vocabulary) for _ in range(random.randint(low, high))]


def ragged(vocabulary: int, count: int, adapters: int) -> list[Job]:
    random = Random(1)
    return [
        Job(index % adapters, ids(vocabulary, 100 + index, 20, 200), random.randint(10, 100)) for index in range(count)
    ]


async def serve(engine: LocalEngine, jobs: list[Job]) -> float:
    """All requests at once. Prompts are made unlike those of earlier rounds, so that none is at hand."""
    fresh = time.time_ns() % 1000

    async def one(job: Job) -> None:
        prompt = [6 + (token + fresh) % 1500 for token in job.prompt]
        params = SampleParams(max_tokens=job.new, seed=1, stop=[])
        async for _ in engine.sample(str(job.adapter), prompt, params, job.samples):
            pass

    start = time.perf_counter()
    await asyncio.gather(*map(one, jobs))
    return time.perf_counter() - start


def by_adapter(model: PreTrainedModel | PeftModel, jobs: list[Job]) -> float:
    """Each adapter's requests as one padded batch, one adapter after another."""
    total = 0.0
    for adapter in sorted({job.adapter for job in jobs}):
        if isinstance(model, PeftModel):
            model.set_adapter(str(adapter))
        total += generate(model, [job for job in jobs if job.adapter == adapter])
    return total


def generate(model: PreTrainedModel | PeftModel, jobs: list[Job]) -> float:
    longest = max(len(job.prompt) for job in jobs)
    new = max(job.new for job in jobs)
    padded = torch.tensor([[0] * (longest - len(job.prompt)) + job.prompt for job in jobs])
    mask = torch.tensor([[0] * (longest - len(job.prompt)) + [1] * len(job.prompt) for job in jobs])
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": new, "min_new_tokens": new}
    settings["num_return_sequences"] = jobs[0].samples
    with torch.inference_mode():
        return timed(lambda: model.generate(input_ids=padded, attention_mask=mask, **settings))


def continuous(model: PreTrainedModel, jobs: list[Job]) -> float:
    """``transformers``' own continuous batching, without its start and stop; its default cache is all of memory."""
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=100, eos_token_id=-1, pad_token_id=0)
    sizes = ContinuousBatchingConfig(num_blocks=128, max_batch_tokens=512)
    with (
        attention(model, "sdpa"),
        model.continuous_batching_context_manager(config, continuous_batching_config=sizes) as manager,
    ):
        start = time.perf_counter()
        for job in jobs:
            manager.add_request(job.prompt, max_new_tokens=job.new)
        done = 0
        while done < len(jobs):
            result = manager.get_result(timeout=10)
            done += result is not None and result.is_finished()
        return time.perf_counter() - start


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Continuous batching changes the model's attention; put it back."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    yield
    model.set_attn_implementation(before)


async def repeated(engine: LocalEngine, vocabulary: int) -> dict[str, float]:
    """32 requests for one token that begin with the same 512 tokens, first unread, then read."""
    start = ids(vocabulary, time.time_ns(), 512, 512)
    jobs = [Job(0, start + ids(vocabulary, seed, 10, 10), 1) for seed in range(32)]

    async def ask() -> float:
        began = time.perf_counter()
        for job in jobs:
            async for _ in engine.sample("0", job.prompt, SampleParams(max_tokens=1, seed=1)):
                pass
        return time.perf_counter() - began

    async def alone() -> float:
        began = time.perf_counter()
        async for _ in engine.sample("0", [*start, 7], SampleParams(max_tokens=1, seed=1)):
            pass
        return time.perf_counter() - began

    first = await alone()
    return {"first_ms": round(first * 1e3, 2), "others_ms": round(await ask() / len(jobs) * 1e3, 2)}


async def best(sides: dict[str, Callable[[], Any]], jobs: list[Job], rounds: int, threads: int) -> dict[str, float]:
    """Time all sides in turn; ratios are against ``doorstep``."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            torch.set_num_threads(threads)  # the engine sets its own in its turn
            taken = side()
            times[name].append(await taken if asyncio.iscoroutine(taken) else taken)
    seconds = {name: min(found[1:]) for name, found in times.items()}
    tokens = sum(job.new * job.samples for job in jobs)
    ratios = {f"times_{name}": round(each / seconds["doorstep"], 2) for name, each in seconds.items()}
    del ratios["times_doorstep"]
    return {
        **{f"{name}_s": round(each, 3) for name, each in seconds.items()},
        **ratios,
        "tokens_per_s": round(tokens / seconds["doorstep"]),
    }


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
