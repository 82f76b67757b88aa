"""The forward pass of a Llama- or Qwen3-like decoder on plain tensors: no module tree, adapters already merged in.

``run`` is for whole rows (training, prefill, scoring). Sampling takes the same layers one token at a time through
``attention_inputs`` and ``rest_of_layer``. Letters in shapes: B rows, T positions, D width, H query and K key heads,
E size of a head.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor, Tensor], Tensor]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a decoder."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int  # of the MLP
    vocabulary: int
    eps: float


class Layer(NamedTuple):
    """One layer; products that share their input are packed into one matrix, outputs one after another."""

    norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # (H + K, E)
    o: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Weights(NamedTuple):
    """All weights of a decoder. ``head`` may be the same tensor as ``embed``."""

    embed: Tensor
    layers: list[Layer]
    norm: Tensor
    head: Tensor


class Rope(NamedTuple):
    """Rotary tables (positions, E); ``sin`` carries the sign of the half that it multiplies."""

    cos: Tensor
    sin: Tensor


class Layout(NamedTuple):
    """Rows that are not plain text from their beginning: each place's position, (B, T), what it sees, (B, 1, T, T)."""

    positions: Tensor
    mask: Tensor


class KeyValues(NamedTuple):
    """Keys and values of one layer, (B, K, T, E)."""

    keys: Tensor
    values: Tensor


def run(
    shape: Shape,
    weights: Weights,
    rope: Rope,
    tokens: Tensor,
    layout: Layout | None = None,
    keep: list[KeyValues] | None = None,
) -> Tensor:
    """Return the normalised hidden states (B, T, D) of right-padded rows; ``keep`` gets the layers' keys and values."""
    rows, length = tokens.shape
    positions = torch.arange(length) if layout is None else layout.positions
    mask = None if layout is None else layout.mask
    at = Rope(rope.cos[positions].unsqueeze(-2), rope.sin[positions].unsqueeze(-2))
    grouped = shape.heads != shape.kv_heads
    x = F.embedding(tokens, weights.embed)
    for layer in weights.layers:
        q, k, v = (part.transpose(1, 2) for part in attention_inputs(shape, layer, at, x, F.linear))
        if keep is not None:
            keep.append(KeyValues(k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)
        mixed = mixed.transpose(1, 2).reshape(rows, length, -1)
        x = rest_of_layer(shape, layer, x, mixed, F.linear)
    return normalise(x, weights.norm, shape.eps)


def attention_inputs(
    shape: Shape, layer: Layer, rope: Rope, x: Tensor, linear: Linear
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys (both rotated) and values of a layer: (…, H, E), (…, K, E), (…, K, E)."""
    packed = linear(normalise(x, layer.norm, shape.eps), layer.qkv)
    if layer.qkv_bias is not None:
        packed = packed + layer.qkv_bias
    heads = packed.unflatten(-1, (-1, shape.head_size))
    qk, v = heads.split((shape.heads + shape.kv_heads, shape.kv_heads), dim=-2)
    if layer.qk_norm is not None:
        qk = F.rms_norm(qk, (shape.head_size,), eps=shape.eps) * layer.qk_norm
    qk = qk * rope.cos + qk.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * rope.sin
    q, k = qk.split((shape.heads, shape.kv_heads), dim=-2)
    return q, k, v


def rest_of_layer(shape: Shape, layer: Layer, x: Tensor, mixed: Tensor, linear: Linear) -> Tensor:
    """Return the layer's output: what attention mixed, added through ``o``, then the MLP."""
    x = x + linear(mixed, layer.o)
    gate, up = linear(normalise(x, layer.mlp_norm, shape.eps), layer.gate_up).chunk(2, dim=-1)
    return x + linear(F.silu(gate) * up, layer.down)


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def logits(weights: Weights, hidden: Tensor, linear: Linear = F.linear) -> Tensor:
    """Return the scores of every vocabulary entry, (…, V)."""
    return linear(hidden, weights.head)


def frozen(weights: Weights) -> Weights:
    """Return the same weights without gradients: views on the same memory."""
    layers = [
        layer._replace(**{field: value.detach() for field, value in layer._asdict().items() if value is not None})
        for layer in weights.layers
    ]
    return Weights(weights.embed.detach(), layers, weights.norm.detach(), weights.head.detach())


def rope_tables(cos: Tensor, sin: Tensor) -> Rope:
    """Make tables from those of ``transformers`` (positions, E), where rotation negates the second half's turn."""
    half = sin.shape[-1] // 2
    return Rope(cos.contiguous(), torch.cat([-sin[:, :half], sin[:, half:]], dim=-1))
