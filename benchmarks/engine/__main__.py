"""The engine beside its peers, in one run: training of few and many tenants, and sampling.

    python benchmarks/engine training                        # the shipped base, all cores
    python benchmarks/engine sampling --random --threads 1   # its shape with random weights

Prints one JSON object. Both sides do the same work on the same weights; what counts is the ratio, since times follow
what else the machine does.
"""

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path

import sampling
import torch
import training
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from doorstep.config import TINY

PARTS = {"training": training.compare, "sampling": sampling.compare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--folder", type=Path, default=TINY)
    parser.add_argument("--random", action="store_true", help="random weights in the shape of the shipped base")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides; all cores by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        folder = write_random(Path(place)) if arguments.random else arguments.folder
        work = PARTS[arguments.part](folder, arguments.threads, arguments.rounds, arguments.rank)
        print(json.dumps({"threads": arguments.threads} | asyncio.run(work), indent=2))


def write_random(folder: Path) -> Path:
    config = Qwen3Config(
        vocab_size=1536,
        hidden_size=192,
        intermediate_size=576,
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


if __name__ == "__main__":
    main()
