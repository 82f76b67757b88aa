"""Training and decoding of models of standard shapes on a GPU, beside PEFT: speed, memory, part of the card's peak.

    python benchmarks/engine/gpu.py qwen3-8b                # on CUDA, in bf16; random weights, nothing is downloaded
    python benchmarks/engine/gpu.py tiny --device cpu       # the same code where there is no GPU, in fp32

Prints one JSON object. No GPU was at hand when this was written: what it would print there is not known.

Both sides train the same rows with a base in bf16 and adapters, gradients and AdamW in fp32, all matrices adapted, the
head too. Neither checkpoints activations. PEFT computes its adapters in fp32 and holds the logits of all positions;
Doorstep computes them in bf16 and holds logits for some positions at a time. The eight tenants of PEFT come one after
another. The sides do not take turns, for each has the memory to itself; it is the peak of training one tenant. What
decodes is the base, on one stream; the time of the prompt does not count.

Model FLOPs of a token in LoRA training: 4·N + 6·A + 6·T·H·E·L. N are the numbers in the base's matrices, the head with
them and the embeddings without: 2·N forwards, 2·N for the gradient at the activations; frozen matrices have none. A are
the adapter's numbers, which have. The last term is causal attention over T places with L layers of H heads of size E:
2·T·H·E forwards, twice that backwards. What is computed a second time counts once. Utilisation is that by the card's
dense peak in bf16. A decoded token reads N numbers and the keys and values so far; bandwidth is that by the card's.
"""

import argparse
import asyncio
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import transformers
from peft import LoraConfig, get_peft_model
from training import TARGETS, step
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config
from transformers.utils import logging

from doorstep.engine.api import LoraSpec, SampleParams, Token
from doorstep.engine.local import LocalEngine

TENANTS = 8
COMMON = {"bos_token_id": None, "eos_token_id": 5, "pad_token_id": 0, "max_position_embeddings": 4096}


class Card(NamedTuple):
    """What NVIDIA's data sheets say: FLOP/s in bf16 without sparsity, bytes/s of memory."""

    flops: float
    bandwidth: float


CARDS = {
    "NVIDIA A100-SXM4-80GB": Card(312e12, 2.039e12),
    "NVIDIA H100 80GB HBM3": Card(989e12, 3.35e12),
    "NVIDIA H100 PCIe": Card(756e12, 2.0e12),
    "NVIDIA H200": Card(989e12, 4.8e12),
    "NVIDIA L4": Card(121e12, 0.3e12),
    "NVIDIA L40S": Card(362e12, 0.864e12),
    "NVIDIA GeForce RTX 4090": Card(165e12, 1.008e12),
}


class Sizes(NamedTuple):
    """A length of rows, tokens of a tenant's only row, tokens to decode, and how often to measure."""

    sequence: int
    tenant: int
    new: int
    rounds: int


def qwen3(width: int, hidden: int, layers: int, heads: int, kv_heads: int, tied: bool) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        tie_word_embeddings=tied,
        **COMMON,
    )


def llama_1b() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
        **COMMON,
    )


def tiny() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        **COMMON,
    )


SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen3-0.6b": lambda: qwen3(1024, 3072, 28, 16, 8, tied=True),
    "qwen3-1.7b": lambda: qwen3(2048, 6144, 28, 16, 8, tied=True),
    "qwen3-4b": lambda: qwen3(2560, 9728, 36, 32, 8, tied=True),
    "qwen3-8b": lambda: qwen3(4096, 12_288, 36, 32, 8, tied=False),
    "llama-3.2-1b": llama_1b,
    "tiny": tiny,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rows", type=int, default=4, help="rows of a training batch")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; `tiny --device cpu` runs the same code")
    logging.disable_progress_bar()
    sizes = Sizes(64, 16, 12, 1) if arguments.shape == "tiny" else Sizes(2048, 256, 256, 3)
    bench = Bench(SHAPES[arguments.shape](), arguments.device, arguments.rank, arguments.rows, sizes)
    with tempfile.TemporaryDirectory() as place:
        bench.write(Path(place))
        found = {"doorstep": asyncio.run(bench.doorstep(Path(place))), "peft": bench.peft(Path(place))}
    print(json.dumps({"shape": arguments.shape, **bench.about(), **found}, indent=2))


class Bench:
    """One shape on one device."""

    def __init__(self, config: PretrainedConfig, device: str, rank: int, rows: int, sizes: Sizes) -> None:
        self.config = config
        self._device = device
        self._rank = rank
        self._sizes = sizes
        self._dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._name = "CPU" if device == "cpu" else torch.cuda.get_device_name()
        self._card = CARDS.get(self._name)
        self._batch = [self._ids(sizes.sequence, seed) for seed in range(rows)]
        self._tenants = [[self._ids(sizes.tenant, 100 + seed)] for seed in range(TENANTS)]

    def about(self) -> dict[str, Any]:
        return {
            "card": self._name,
            "peak": self._card and self._card._asdict(),
            "dtype": str(self._dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "matrix_parameters": matrices(self.config),
            "adapter_parameters": adapter(self.config, self._rank),
            "rank": self._rank,
            "rows": len(self._batch),
            "sequence": self._sizes.sequence,
        }

    def write(self, folder: Path) -> None:
        """Save a model with random weights, made where they are used."""
        with torch.device(self._device):
            AutoModelForCausalLM.from_config(self.config, dtype=torch.bfloat16).save_pretrained(folder)
        self._forget()

    async def doorstep(self, folder: Path) -> dict[str, Any]:
        engine = await LocalEngine.start(folder, "base", torch.get_num_threads(), self._device)
        await engine.create_adapter("0", LoraSpec(rank=self._rank))
        await step(engine, self._tenants[:1])  # the first time pays for what is set up then
        training = [await step(engine, [self._batch]) for _ in range(self._sizes.rounds)]
        peak = self._peak()
        for tenant in range(1, TENANTS):
            await engine.create_adapter(str(tenant), LoraSpec(rank=self._rank, seed=tenant))
        tenants = [await step(engine, self._tenants) for _ in range(1 + self._sizes.rounds)]
        decoding = [await self._decode(engine) for _ in range(1 + self._sizes.rounds)]
        found = self._figures(min(training), min(tenants), min(decoding), peak)
        await engine.close()
        return found

    def peft(self, folder: Path) -> dict[str, Any]:
        self._forget()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self._dtype).to(self._device)
        model = get_peft_model(model, LoraConfig(r=self._rank, lora_alpha=32, target_modules=TARGETS)).train()
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], fused=True)

        def train(texts: list[list[int]]) -> float:
            return self._timed(lambda: self._peft_step(model, optimizer, texts))

        train(self._tenants[0])
        training = [train(self._batch) for _ in range(self._sizes.rounds)]
        peak = self._peak()
        tenants = [sum(train(texts) for texts in self._tenants) for _ in range(self._sizes.rounds)]
        model.eval()
        decoding = [self._peft_decode(model) for _ in range(1 + self._sizes.rounds)]
        return self._figures(min(training), min(tenants), min(decoding), peak)

    def _peft_step(self, model: Any, optimizer: torch.optim.Optimizer, texts: list[list[int]]) -> None:
        tokens = torch.tensor(texts, device=self._device)
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    async def _decode(self, engine: LocalEngine) -> float:
        """Return the seconds of a token, the prompt not counted."""
        params = SampleParams(max_tokens=self._sizes.new + 1, seed=1, stop=[])
        times = [
            time.perf_counter()
            async for event in engine.sample(None, self._ids(self._sizes.tenant, 1), params)
            if isinstance(event, Token)
        ]
        return (times[-1] - times[0]) / self._sizes.new

    def _peft_decode(self, model: Any) -> float:
        new = self._sizes.new
        return (self._generate(model, new + 1) - self._generate(model, 1)) / new

    def _generate(self, model: Any, new: int) -> float:
        prompt = torch.tensor([self._ids(self._sizes.tenant, 1)], device=self._device)
        mask = torch.ones_like(prompt)
        length = {"max_new_tokens": new, "min_new_tokens": new}
        with model.disable_adapter():
            return self._timed(lambda: model.generate(input_ids=prompt, attention_mask=mask, do_sample=True, **length))

    def _figures(self, training: float, tenants: float, decoding: float, peak: float | None) -> dict[str, Any]:
        tokens = len(self._batch) * self._sizes.sequence
        flops = tokens * model_flops(self.config, self._rank, self._sizes.sequence)
        read = decode_bytes(self.config, self._dtype.itemsize, self._sizes.tenant + self._sizes.new // 2)
        return {
            "training_tokens_per_s": round(tokens / training),
            "training_flops_utilisation": self._card and round(flops / training / self._card.flops, 3),
            "eight_tenants_tokens_per_s": round(TENANTS * self._sizes.tenant / tenants),
            "decode_tokens_per_s": round(1 / decoding, 1),
            "decode_bandwidth_utilisation": self._card and round(read / decoding / self._card.bandwidth, 3),
            "training_memory_gib": peak,
        }

    def _peak(self) -> float | None:
        return None if self._device == "cpu" else round(torch.cuda.max_memory_allocated() / 2**30, 2)

    def _timed(self, work: Callable[[], None]) -> float:
        began = time.perf_counter()
        work()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _forget(self) -> None:
        """Give back what is not used any more, so that the peak is that of what follows."""
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _ids(self, length: int, seed: int) -> list[int]:
        random = Random(seed)
        return [random.randrange(6, self.config.vocab_size) for _ in range(length)]


def sites(config: PretrainedConfig) -> list[tuple[int, int]]:
    """Return the (outputs, inputs) of one layer's matrices."""
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    width, hidden = config.hidden_size, config.intermediate_size
    return [(queries, width), (keys, width), (keys, width), (width, queries), *2 * [(hidden, width)], (width, hidden)]


def matrices(config: PretrainedConfig) -> int:
    """Return N: the numbers in all matrices and the head."""
    layer = sum(outputs * inputs for outputs, inputs in sites(config))
    return int(config.num_hidden_layers * layer + config.vocab_size * config.hidden_size)


def adapter(config: PretrainedConfig, rank: int) -> int:
    """Return A: the numbers in an adapter of all matrices and the head."""
    layer = sum(outputs + inputs for outputs, inputs in sites(config))
    return int(rank * (config.num_hidden_layers * layer + config.vocab_size + config.hidden_size))


def model_flops(config: PretrainedConfig, rank: int, length: int) -> float:
    """Return the operations of a token in training (see above)."""
    attention = 6 * length * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return float(4 * matrices(config) + 6 * adapter(config, rank) + attention)


def decode_bytes(config: PretrainedConfig, size: int, length: int) -> float:
    """Return what a token reads behind ``length`` others."""
    kept = 2 * length * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return float(size * (matrices(config) + kept))


if __name__ == "__main__":
    main()
