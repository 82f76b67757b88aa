"""The base model: loading a ``transformers`` folder into packed tensors, and what can be said about it.

Owns the frozen weights: fp32 on the CPU, bf16 on CUDA (not run there yet). Takes Llama, Qwen2, Qwen3 and Mistral shapes
without sliding windows.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
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


def takes(folder: Path) -> bool:
    """Tell whether a model folder holds a decoder of the shapes that are known here."""
    from transformers import AutoConfig

    try:
        return _known(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{folder} cannot be loaded as a language model: {error}") from error


def load_base(folder: Path, name: str, device: torch.device) -> Base:
    """Load a model folder; EngineError says what is wrong with it."""
    model = _load(folder, device)
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
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if device.type == "cpu":  # in memory of their own: kernels give other bits where a mapped file is not aligned
        named = {name: parameter.clone() for name, parameter in named.items()}
    weights = pack(named, shape)
    positions = torch.arange(info.max_context, device=device)[None]
    cos, sin = model.model.rotary_emb(weights.embed, position_ids=positions)
    return Base(info, shape, weights, rope_tables(cos[0], sin[0]), _ends(model))


def _load(folder: Path, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EngineError(f"{folder} cannot be loaded as a language model: {error}") from error
    return model.eval().requires_grad_(False).to(device)


def _known(config: Any) -> bool:
    """Tell whether this is a plain decoder: silu, full attention, no biases but those of query, key and value."""
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    windows = windows or (config.model_type == "mistral" and config.sliding_window)
    biases = getattr(config, "mlp_bias", False) or (
        config.model_type != "qwen2" and getattr(config, "attention_bias", False)
    )
    return config.model_type in FAMILIES and config.hidden_act == "silu" and not windows and not biases


def pack(named: Mapping[str, Tensor], shape: Shape) -> Weights:
    """Return the weights of a model from its parameters by name; where it has no head, the embeddings are it."""
    layers = [_pack_layer(named, f"model.layers.{number}", shape) for number in range(shape.layers)]
    embed = named["model.embed_tokens.weight"]
    return Weights(embed, layers, named["model.norm.weight"], named.get("lm_head.weight", embed))


def _pack_layer(named: Mapping[str, Tensor], layer: str, shape: Shape) -> Layer:
    qkv = [f"{layer}.self_attn.{part}_proj" for part in "qkv"]
    norms = [(f"{layer}.self_attn.q_norm.weight", shape.heads), (f"{layer}.self_attn.k_norm.weight", shape.kv_heads)]
    normed, biased = norms[0][0] in named, f"{qkv[0]}.bias" in named
    return Layer(
        norm=named[f"{layer}.input_layernorm.weight"],
        qkv=torch.cat([named[f"{part}.weight"] for part in qkv]),
        qkv_bias=torch.cat([named[f"{part}.bias"] for part in qkv]) if biased else None,
        qk_norm=torch.cat([named[name].expand(heads, -1) for name, heads in norms]) if normed else None,
        o=named[f"{layer}.self_attn.o_proj.weight"],
        mlp_norm=named[f"{layer}.post_attention_layernorm.weight"],
        gate_up=torch.cat([named[f"{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up")]),
        down=named[f"{layer}.mlp.down_proj.weight"],
    )


def _ends(model: Any) -> list[list[int]]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return []
    return [[end] for end in (ends if isinstance(ends, list) else [ends])]
