"""The engine beside ``transformers`` and PEFT, in one run: sampling, and forward-backward of LoRA
over unlike rows and over groups of samples of one prompt.

    python benchmarks/engine.py                      # the shipped base
    python benchmarks/engine.py --random --threads 2 # its shape with random weights

Prints one JSON object. Both sides do the same work on the same weights; what counts is the ratio, since wall times
follow what else the machine does. Times are medians of interleaved rounds.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from doorstep.config import TINY
from doorstep.engine.api import LoraSpec, Loss, SampleParams, TrainRow
from doorstep.engine.local import LocalEngine

PROMPTS, SAMPLES, NEW = 24, 8, 40
ROWS, MICRO = 192, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=TINY)
    parser.add_argument("--random", action="store_true", help="random weights in the shape of the shipped base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = write_random(Path(place)) if arguments.random else arguments.folder
        print(json.dumps(asyncio.run(compare(folder, arguments.threads, arguments.rounds, arguments.rank)), indent=2))


def write_random(folder: Path) -> Path:
    config = Qwen3Config(
        vocab_size=1536,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=5,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


async def compare(folder: Path, threads: int, rounds: int, rank: int) -> dict[str, object]:
    engine = await LocalEngine.start(folder, "base", threads)
    vocabulary = (await engine.info()).vocabulary
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    random = Random(0)
    prompts = [ids(random, vocabulary, random.randint(100, 140)) for _ in range(PROMPTS)]
    texts = [ids(random, vocabulary, random.randint(130, 170)) for _ in range(ROWS)]
    groups = [prompt + ids(random, vocabulary, NEW) for prompt in prompts for _ in range(SAMPLES)]
    await engine.create_adapter("a", LoraSpec(rank=rank))
    sampling = [(await sample(engine, prompts), generate(model, prompts)) for _ in range(rounds + 1)][1:]
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=32, target_modules=TARGETS)).train()
    training = [(await forward_backward(engine, texts), peft_step(peft, texts)) for _ in range(rounds)]
    grouped = [(await forward_backward(engine, groups), peft_step(peft, groups)) for _ in range(rounds)]
    await engine.close()
    return {
        "threads": threads,
        "sampling": figures("transformers", PROMPTS * SAMPLES * NEW, sampling),
        "forward_backward": figures("peft", sum(map(len, texts)), training),
        "forward_backward_of_groups": figures("peft", sum(map(len, groups)), grouped),
    }


def ids(random: Random, vocabulary: int, length: int) -> list[int]:
    return [random.randrange(6, vocabulary) for _ in range(length)]


async def sample(engine: LocalEngine, prompts: list[list[int]]) -> float:
    params = SampleParams(max_tokens=NEW, seed=1, stop=[])

    async def one(prompt: list[int]) -> None:
        async for _ in engine.sample("a", prompt, params, SAMPLES):
            pass

    start = time.perf_counter()
    await asyncio.gather(*map(one, prompts))
    return time.perf_counter() - start


def generate(model: Qwen3ForCausalLM, prompts: list[list[int]]) -> float:
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"do_sample": True, "max_new_tokens": NEW, "min_new_tokens": NEW, "num_return_sequences": SAMPLES}
    return timed(lambda: model.generate(padded, attention_mask=mask, top_k=0, **settings))


async def forward_backward(engine: LocalEngine, texts: list[list[int]]) -> float:
    rows = [TrainRow(tokens=text[:-1], targets=text[1:], inputs={"weights": counted(text)}) for text in texts]
    start = time.perf_counter()
    await engine.forward_backward("a", rows, Loss(name="cross_entropy"))
    return time.perf_counter() - start


def counted(text: list[int]) -> list[float]:
    """Only the answer, the last positions, counts."""
    return [0.0] * (len(text) - 1 - NEW) + [1.0] * NEW


def peft_step(model: torch.nn.Module, texts: list[list[int]]) -> float:
    """The usual training loop: sorted, right-padded micro-batches, the loss on the answer."""
    order = sorted(texts, key=len)

    def run() -> None:
        for start in range(0, len(order), MICRO):
            group = order[start : start + MICRO]
            longest = max(map(len, group))
            tokens = torch.tensor([text + [0] * (longest - len(text)) for text in group])
            labels = torch.tensor(
                [[-100] * (len(text) - NEW) + text[-NEW:] + [-100] * (longest - len(text)) for text in group]
            )
            mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in group])
            model(tokens, attention_mask=mask, labels=labels).loss.backward()

    return timed(run)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def figures(other: str, tokens: int, rounds: list[tuple[float, float]]) -> dict[str, float]:
    ours, theirs = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "doorstep_s": round(ours, 3),
        f"{other}_s": round(theirs, 3),
        "ratio": round(theirs / ours, 2),
        "doorstep_tokens_per_s": round(tokens / ours),
    }


if __name__ == "__main__":
    main()
