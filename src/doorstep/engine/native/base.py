"""The base model: loading a ``transformers`` folder into packed fp32 tensors, and what can be said about it.

Owns the frozen weights. Takes Llama, Qwen2, Qwen3 and Mistral shapes without sliding windows; anything else is
refused with the reason.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doorstep.config import weights_digest
from doorstep.engine.api import ModelInfo
from doorstep.engine.native.decoder import Layer, Rope, Shape, Weights, rope_tables
from doorstep.errors import EngineError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class Base(NamedTuple):
    """A loaded model. ``ends`` are its end-of-text tokens."""

    info: ModelInfo
    shape: Shape
    weights: Weights
    rope: Rope
    ends: list[list[int]]


def load_base(folder: Path, name: str) -> Base:
    """Load a model folder; EngineError says what is wrong with it."""
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise EngineError(f"{folder} holds no model: it must have config.json and *.safetensors")
    model = _load(folder)
    config = model.config
    shape = Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=model.model.layers[0].self_attn.head_dim,
        hidden=config.intermediate_size,
        vocabulary=config.vocab_size,
        eps=config.rms_norm_eps,
    )
    tokenizer = folder / "tokenizer.json"
    info = ModelInfo(
        name=name,
        folder=str(folder),
        digest=weights_digest(folder),
        tokenizer_digest=hashlib.sha256(tokenizer.read_bytes() if tokenizer.is_file() else b"").hexdigest(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=shape.vocabulary,
        max_context=config.max_position_embeddings,
    )
    weights = _pack(model, shape)
    positions = torch.arange(info.max_context)[None]
    cos, sin = model.model.rotary_emb(weights.embed, position_ids=positions)
    return Base(info, shape, weights, rope_tables(cos[0], sin[0]), _ends(model))


def _load(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder)
        _check(config)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError(f"{folder} cannot be loaded as a language model: {error}") from error
    return model.eval().requires_grad_(False)


def _check(config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise EngineError(f"model type {config.model_type!r} is not served here; there are {', '.join(FAMILIES)}")
    if config.hidden_act != "silu":
        raise EngineError(f"the MLP's activation is {config.hidden_act}; only silu is served here")
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    if windows or (config.model_type == "mistral" and config.sliding_window):
        raise EngineError("models with sliding-window attention are not served here")
    if getattr(config, "mlp_bias", False) or (
        config.model_type != "qwen2" and getattr(config, "attention_bias", False)
    ):
        raise EngineError("models with biases outside query, key and value are not served here")


def _pack(model: Any, shape: Shape) -> Weights:
    layers = [_pack_layer(layer, shape) for layer in model.model.layers]
    embed = _own(model.model.embed_tokens)
    head = embed if model.config.tie_word_embeddings else _own(model.lm_head)
    return Weights(embed, layers, _own(model.model.norm), head)


def _pack_layer(layer: Any, shape: Shape) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    qk_norm: Tensor | None = None
    if hasattr(attention, "q_norm"):
        norms = (attention.q_norm.weight.expand(shape.heads, -1), attention.k_norm.weight.expand(shape.kv_heads, -1))
        qk_norm = torch.cat(norms)
    return Layer(
        norm=_own(layer.input_layernorm),
        qkv=torch.cat([part.weight for part in parts]),
        qkv_bias=None if parts[0].bias is None else torch.cat([part.bias for part in parts]),
        qk_norm=qk_norm,
        o=_own(attention.o_proj),
        mlp_norm=_own(layer.post_attention_layernorm),
        gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=_own(mlp.down_proj),
    )


def _own(module: Any) -> Tensor:
    """Return a module's weight in memory of its own: kernels give other bits where a mapped file is not aligned."""
    weight: Tensor = module.weight.detach().clone()
    return weight


def _ends(model: Any) -> list[list[int]]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return []
    return [[end] for end in (ends if isinstance(ends, list) else [ends])]
