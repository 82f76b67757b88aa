"""Random models of a few thousand parameters in folders as ``transformers`` writes them."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 96
SIZES = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "max_position_embeddings": 192,
    "bos_token_id": None,
    "eos_token_id": 5,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


def qwen3() -> PreTrainedModel:
    """Grouped heads, tied embeddings: the shape of the shipped base."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **sizes, head_dim=16, tie_word_embeddings=True)).eval()


def llama() -> PreTrainedModel:
    """One key head per query head, an untied head, odd sizes."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 3, "num_key_value_heads": 3}
    return LlamaForCausalLM(LlamaConfig(**SIZES, **sizes, tie_word_embeddings=False)).eval()


def write(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model, with something where the tokenizer would be."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder
