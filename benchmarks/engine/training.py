"""Training: forward-backward and optimiser step of 1 to 16 tenants with few rows each, beside plain PEFT loops.

A PEFT loop is what one tenant would run alone: a PEFT model, AdamW over its adapter, a padded batch, the loss over
all tokens. Tenants beside each other are as many such loops one after another, in one process. What counts is
the ratio of tokens a second; times are the best of rounds in which the two take turns. Where ``trl`` is installed, its
SFTTrainer is measured too, over twenty steps of one tenant.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from doorstep.engine.api import AdamParams, LoraSpec, Loss, SampleParams, TrainRow
from doorstep.engine.local import LocalEngine

LENGTH = 64  # tokens of a row
TENANTS = (1, 2, 4, 8, 16)
ROWS = (1, 2, 8)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
STEP = AdamParams(learning_rate=1e-4)


async def compare(folder: Path, threads: int, rounds: int, rank: int) -> dict[str, object]:
    """Return the figures of all numbers of tenants and rows."""
    engine = await LocalEngine.start(folder, "base", threads)
    for tenant in range(max(TENANTS)):
        await engine.create_adapter(str(tenant), LoraSpec(rank=rank, seed=tenant))
    peft = Peft(folder, rank, threads)
    vocabulary = (await engine.info()).vocabulary
    found: dict[str, object] = {}
    for rows in ROWS:
        for tenants in TENANTS:
            texts = [[ids(vocabulary, row, tenant) for row in range(rows)] for tenant in range(tenants)]
            found[f"{tenants} tenants, {rows} rows each"] = await figures(engine, peft, texts, rounds)
    for rows in ROWS:
        if seconds := trl(folder, rank, threads, [ids(vocabulary, row, 0) for row in range(rows)]):
            found[f"trl, 1 tenant, {rows} rows"] = {"trl_tokens_per_s": round(LENGTH * rows / seconds)}
    found["idle"] = await idle(engine, [ids(vocabulary, 0, 0)[:2]])
    await engine.close()
    return found


def ids(vocabulary: int, row: int, tenant: int) -> list[int]:
    random = Random(100 * tenant + row)
    return [random.randrange(6, vocabulary) for _ in range(LENGTH + 1)]


async def figures(engine: LocalEngine, peft: "Peft", texts: list[list[list[int]]], rounds: int) -> dict[str, float]:
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(await step(engine, texts))
        theirs.append(sum(peft.step(rows) for rows in texts))
    tokens = LENGTH * sum(map(len, texts))
    return {
        "doorstep_tokens_per_s": round(tokens / min(ours)),
        "peft_tokens_per_s": round(tokens / min(theirs)),
        "ratio": round(min(theirs) / min(ours), 2),
    }


async def step(engine: LocalEngine, texts: list[list[list[int]]]) -> float:
    """Let each tenant send forward-backward and the step at once, as the Tinker API's clients do."""

    async def tenant(name: str, rows: list[TrainRow]) -> None:
        await asyncio.gather(engine.forward_backward(name, rows, CROSS_ENTROPY), engine.optim_step(name, STEP))

    calls = [tenant(str(number), [train_row(text) for text in rows]) for number, rows in enumerate(texts)]
    began = time.perf_counter()
    await asyncio.gather(*calls)
    return time.perf_counter() - began


CROSS_ENTROPY = Loss(name="cross_entropy")


def train_row(text: list[int]) -> TrainRow:
    return TrainRow(tokens=text[:-1], targets=text[1:], inputs={"weights": [1.0] * (len(text) - 1)})


async def idle(engine: LocalEngine, texts: list[list[int]]) -> dict[str, float]:
    """Return the milliseconds of calls that have next to nothing to compute, and of a new version's first token."""
    rows = [train_row(text) for text in texts]

    async def new_version() -> None:
        await engine.copy_adapter("0", "copy")
        async for _ in engine.sample("copy", texts[0], SampleParams(max_tokens=1)):
            pass

    calls = {
        "forward_backward_ms": lambda: engine.forward_backward("0", rows, CROSS_ENTROPY),
        "optim_step_ms": lambda: engine.optim_step("0", STEP),
        "first_token_of_a_copy_ms": new_version,
    }
    found = {}
    for name, call in calls.items():
        times = []
        for _ in range(20):
            began = time.perf_counter()
            await call()
            times.append(time.perf_counter() - began)
        found[name] = round(1000 * min(times), 2)
    return found


class Peft:
    """The usual training loop."""

    def __init__(self, folder: Path, rank: int, threads: int) -> None:
        self._threads = threads
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=32, target_modules=TARGETS)
        self._model = get_peft_model(model, config).train()
        self._optimizer = torch.optim.AdamW([part for part in self._model.parameters() if part.requires_grad], lr=1e-4)

    def step(self, texts: list[list[int]]) -> float:
        """Train on some rows; return the seconds."""
        torch.set_num_threads(self._threads)  # the engine, whose turn it was, sets its own
        began = time.perf_counter()
        tokens = torch.tensor(texts)
        self._model(tokens, labels=tokens).loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return time.perf_counter() - began


def trl(folder: Path, rank: int, threads: int, texts: list[list[int]], steps: int = 20) -> float | None:
    """Return the seconds of one step of TRL's SFTTrainer on some rows, its start not counted; None without TRL."""
    try:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        return None
    torch.set_num_threads(threads)
    settings = {"max_steps": steps, "per_device_train_batch_size": len(texts), "use_cpu": True, "bf16": False}
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as place:
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=SFTConfig(place, gradient_checkpointing=False, max_length=None, **settings, **quiet),
            train_dataset=Dataset.from_dict({"input_ids": texts * steps}),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(r=rank, lora_alpha=32, target_modules=TARGETS[:-1]),  # it refuses the head
        )
        return float(trainer.train().metrics["train_runtime"]) / steps
