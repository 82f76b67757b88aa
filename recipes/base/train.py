"""Train the shipped base: a tokenizer, then a small Qwen3-shaped decoder, from generated text alone.

    python recipes/base/train.py --out src/doorstep/models/tiny --bf16

In two stages: large batches at a level rate until copying is learned, then small ones at a falling rate. Deterministic
for a kind of machine and a thread count. Writes the folder every 500 steps, so that a stopped run leaves a model that
works; the second stage goes on from the first one's file. See README.md for what it reaches.
"""

import argparse
import json
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from families import FAMILIES_BY_WEIGHT, instance
from muon import Muon
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM
from words import GOODS

SPECIAL = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]
PAD, SYSTEM, USER, ASSISTANT, TOOL, END = range(6)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELD_OUT = 1_000_000_000  # seeds from here on are never trained on
SAVE_EVERY = 500  # steps
PROMPT_WEIGHT = 0.3  # of a prompt token's loss beside an answer token's, where it counts at all


class Stage(NamedTuple):
    """A part of training with fresh optimizers; the rate rises over 50 steps, then stays level or falls to zero."""

    steps: int
    batch: int  # instances per step
    muon_rate: float
    adam_rate: float
    falling: bool
    orthogonal_in: torch.dtype  # of Muon's iteration


STAGES = (
    Stage(2500, 64, 0.02, 4e-3, falling=False, orthogonal_in=torch.float32),
    Stage(6000, 24, 0.01, 2e-3, falling=True, orthogonal_in=torch.bfloat16),
)


def train_tokenizer(vocabulary: int) -> Tokenizer:
    """Byte-level BPE over instances; digits stand alone, so that numbers are spelled one way."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [part for seed in range(30_000) for part in instance(HELD_OUT * 2 + seed)[1]]
    words = [word for goods in GOODS for word in goods] * 40
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts + words, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, seeds: range) -> list[tuple[list[int], int]]:
    """Return (ids, length of the prompt) of each instance."""
    parts = [part for seed in seeds for part in instance(seed)[1]]
    codes = [encoding.ids for encoding in tokenizer.encode_batch_fast(parts)]
    rows = []
    for system, user, answer in zip(codes[::3], codes[1::3], codes[2::3], strict=True):
        prompt = [SYSTEM, *system, END, USER, *user, END, ASSISTANT]
        rows.append((prompt + answer + [END], len(prompt)))
    return rows


def batches(tokenizer: Tokenizer, size: int, start: int, pool: int = 16):
    """Yield (ids, weights), right-padded; instances of like length are together, so that little is padding."""
    while True:
        rows = sorted(encode(tokenizer, range(start, start + size * pool)), key=lambda row: len(row[0]))
        groups = [rows[at : at + size] for at in range(0, len(rows), size)]
        Random(start).shuffle(groups)
        start += size * pool
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            tokens = torch.zeros(size, longest, dtype=torch.long)
            weights = torch.zeros(size, longest - 1)
            for index, (ids, prompt) in enumerate(group):
                tokens[index, : len(ids)] = torch.tensor(ids)
                weights[index, : len(ids) - 1] = PROMPT_WEIGHT
                weights[index, prompt - 1 : len(ids) - 1] = 1.0
            yield tokens, weights


def build(vocabulary: int, args: argparse.Namespace) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=args.width,
        intermediate_size=args.width * 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32,
        num_key_value_heads=args.width // 64,
        head_dim=32,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return Qwen3ForCausalLM(config)


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the model folder; weights in bfloat16, which is what makes it small."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.to(torch.bfloat16).save_pretrained(out)
    model.float().load_state_dict(weights)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


@torch.no_grad()
def held_out(model: Qwen3ForCausalLM, tokenizer: Tokenizer, count: int) -> dict[str, tuple[int, int]]:
    """Return (exactly right, asked) per family on instances that were never trained on, decoded greedily."""
    rows = [
        (instance(seed)[0], *row)
        for seed, row in zip(
            range(HELD_OUT, HELD_OUT + count), encode(tokenizer, range(HELD_OUT, HELD_OUT + count)), strict=True
        )
    ]
    score = {family.__name__: (0, 0) for family in FAMILIES_BY_WEIGHT}
    by_length: dict[int, list] = {}
    for row in rows:
        by_length.setdefault(row[2], []).append(row)
    for prompt, group in by_length.items():
        ids = torch.tensor([row[1][:prompt] for row in group])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=96, do_sample=False, pad_token_id=PAD
        )
        for (family, wanted, _), got in zip(group, made[:, prompt:].tolist(), strict=True):
            right, asked = score[family]
            answer = got[: got.index(END) + 1] if END in got else got
            score[family] = (right + (answer == wanted[prompt:]), asked + 1)
    return score


def rate(stage: Stage, step: int, steps: int) -> float:
    """Return the share of the full rate."""
    return min((step + 1) / 50, 1 - step / steps if stage.falling else 1.0)


def train(stage: Stage, first: int, tokenizer: Tokenizer, begin: Path | None, args: argparse.Namespace) -> int:
    """Run one stage on the instances from number ``first`` on; return the number after the last one."""
    torch.manual_seed(args.seed)
    model = build(tokenizer.get_vocab_size(), args)
    if begin:
        model.load_state_dict(Qwen3ForCausalLM.from_pretrained(begin, dtype=torch.float32).state_dict())
    steps = max(1, int(stage.steps * args.scale))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    muon = Muon(matrices, lr=stage.muon_rate, dtype=stage.orthogonal_in)
    adam = torch.optim.AdamW(others, lr=stage.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {tokenizer.get_vocab_size()}",
        flush=True,
    )
    source, started, seen, smooth = batches(tokenizer, stage.batch, first), time.time(), 0, 0.0
    for step in range(steps):
        tokens, weights = next(source)
        for optimizer, full in ((muon, stage.muon_rate), (adam, stage.adam_rate)):
            optimizer.param_groups[0]["lr"] = full * rate(stage, step, steps)
        # Every answer token, and a quarter of the prompt's: the logits are a third of the work.
        kept = (weights == 1.0) | ((weights > 0) & (torch.rand(weights.shape) < 0.25))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state
            logits = model.lm_head(hidden[kept])
        loss = F.cross_entropy(logits.float(), tokens[:, 1:][kept], reduction="none")
        loss = (loss * weights[kept]).sum() / weights[kept].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        model.zero_grad()
        seen += tokens.numel()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step} loss {smooth:.4f} tokens {seen:,} {time.time() - started:.0f}s", flush=True)
        if step % SAVE_EVERY == SAVE_EVERY - 1 or step + 1 == steps:
            save(model, tokenizer, args.out)
            scores = held_out(model, tokenizer, args.held_out)
            print("held out:", {name: f"{right}/{asked}" for name, (right, asked) in scores.items()}, flush=True)
    return first + steps * stage.batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("src/doorstep/models/tiny"))
    parser.add_argument("--scale", type=float, default=1.0, help="share of each stage's steps, for a try")
    parser.add_argument("--vocabulary", type=int, default=1536)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--held-out", type=int, default=300, help="instances that are measured at each save")
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="matrix products in bfloat16: 1.5 times as fast where the CPU has AVX512-BF16",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(args.vocabulary)
    first, begin = 0, None
    for stage in STAGES:
        first, begin = train(stage, first, tokenizer, begin, args), args.out


if __name__ == "__main__":
    main()
