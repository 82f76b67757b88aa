"""Tiny random models of many families, as ``transformers`` makes them from a configuration."""

from typing import Any

import torch
from tiny_models import SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

COMMON = SIZES | {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.15,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Sparse attention takes all of so short a text: which of equally good places it takes is not the same for each length.
LATENT = EXPERTS | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
SPARSE = LATENT | {"index_topk": 192, "index_head_dim": 16, "index_n_heads": 2}
LINEAR = EXPERTS | {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "shared_expert_intermediate_size": 32,
}
WINDOW = {"sliding_window": 8, "query_pre_attn_scalar": 16}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 96,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
MAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "attention", "moe", "mamba"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 12,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma2": WINDOW,
    "gemma3_text": WINDOW,
    "gemma4_text": WINDOW
    | {
        "layer_types": ["sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 8,
    },
    "glm4": {},
    "phi3": {},
    "qwen3_5_text": LINEAR,
    "nemotron_h": MAMBA,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": EXPERTS | {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "rope_parameters": YARN},
    "glm4_moe": EXPERTS
    | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": SPARSE,
}
FAMILIES = list(SHAPES)


def make(family: str, **more: Any) -> PreTrainedModel:
    """Return a random model of a family."""
    torch.manual_seed(3)
    config = CONFIG_MAPPING[family](**COMMON | SHAPES.get(family, {}) | more)
    return AutoModelForCausalLM.from_config(config).eval()
