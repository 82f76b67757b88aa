"""The folder in which recipes run offline: a small model under a large one's name, and data sets of a few rows.

The recipes look models and data up by names on the Hugging Face hub; a folder of that name in the working directory
comes first, for the libraries that they use.
"""

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from doorstep.config import TINY

MODEL = "Qwen/Qwen3-8B"
ROWS = 160
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
PROSE = [
    "after",
    "before",
    "many",
    "most",
    "only",
    "over",
    "such",
    "then",
    "time",
    "under",
    "until",
    "when",
    "the",
    "a",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def lay_out(folder: Path) -> None:
    """Write everything that the recipes look for."""
    _model(folder / MODEL)
    rng = random.Random(7)
    questions = [_question(rng) for _ in range(ROWS)]
    _data(folder / "openai/gsm8k", [{"question": q, "answer": f"Adding up.\n#### {a}"} for q, a in questions], "main")
    talks = [
        {
            "prompt": question,
            "prompt_id": str(number),
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": str(answer)}],
            "category": "Sum",
        }
        for number, (question, answer) in enumerate(questions)
    ]
    _data(folder / "HuggingFaceH4/no_robots", talks)
    pairs = [
        {"chosen": f"\n\nHuman: {q}\n\nAssistant: {a}", "rejected": f"\n\nHuman: {q}\n\nAssistant: no idea"}
        for q, a in questions
    ]
    _data(folder / "Anthropic/hh-rlhf", pairs)
    _data(folder / "zwhe99/DeepMath-103K", [{"question": q} for q, _ in questions])
    lines = [{"text": " ".join(rng.choices(PROSE, k=60)) + " ."} for _ in range(ROWS)]
    _data(folder / "Salesforce/wikitext", lines, "wikitext-103-raw-v1")


def _question(rng: random.Random) -> tuple[str, int]:
    first, second = rng.randint(1, 9), rng.randint(1, 9)
    return f"Ann has {first} apples and buys {second}. How many has she?", first + second


def _data(folder: Path, rows: list[dict[str, object]], config: str = "default") -> None:
    folder.mkdir(parents=True)
    for split, part in (("train", rows), ("test", rows[:16])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n", "utf-8")


def _model(folder: Path) -> None:
    """Write the shipped base with the special tokens of the model whose name it gets."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in WORDS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((TINY / "tokenizer_config.json").read_text("utf-8"))
    settings |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 8192}), "utf-8")
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id("<|im_end|>")
    config |= {"vocab_size": size, "eos_token_id": end, "max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    weights = load_file(TINY / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    torch.manual_seed(7)
    new = rows[torch.randint(len(rows), (size - len(rows),))]  # as if they meant any other token: to be learned
    weights["model.embed_tokens.weight"] = torch.cat([rows, new])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def again(folder: Path) -> Path:
    """Return a new folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
