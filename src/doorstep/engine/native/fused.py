"""The parts of a layer between its products, for training: each one node of autograd, its gradient written out.

The same mathematics as in ``decoder``, in half the passes over memory; frozen weights get no gradient.
"""

from typing import Any

import torch
from torch import Tensor

from doorstep.engine.native.decoder import Attend, Layer, Linear, M, Rope, Shape
from doorstep.engine.native.gate import silu, silu_backward


def through(
    shape: Shape, layers: list[Layer[M]], norm: Tensor, rope: Rope, x: Tensor, attend: Attend, linear: Linear[M]
) -> Tensor:
    """Return the normalised hidden states (N, D), as ``decoder.through`` does."""
    for layer in layers:
        packed = linear(_normalise(x, layer.norm, shape.eps), layer.qkv)
        if layer.qkv_bias is not None:
            packed = packed + layer.qkv_bias
        q, k, v = _Rotate.apply(packed, layer.qk_norm, rope, shape)  # type: ignore[no-untyped-call]
        x = x + linear(attend(q, k, v), layer.o)
        gate_up = linear(_normalise(x, layer.mlp_norm, shape.eps), layer.gate_up)
        x = x + linear(_Gate.apply(gate_up), layer.down)  # type: ignore[no-untyped-call]
    return _normalise(x, norm, shape.eps)


def _normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    found: Tensor = _Norm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return found


class _Norm(torch.autograd.Function):
    """RMSNorm over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _scale(x, eps)
        ctx.weight = weight
        ctx.save_for_backward(x, scale)
        return (x * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, scale = ctx.saved_tensors
        return _norm_backward(gradients[0] * ctx.weight, x, scale), None, None


def _scale(x: Tensor, eps: float) -> Tensor:
    return x.float().square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()


def _norm_backward(change: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient at x from that at x·scale; ``change`` is used up."""
    along = (change * x).mean(dim=-1, keepdim=True)
    return change.mul_(scale).addcmul_(x, along.mul_(scale.pow(3)), value=-1)


class _Rotate(torch.autograd.Function):
    """Packed queries, keys and values (N, …) to normalised and rotated (N, H, E), (N, K, E) and plain (N, K, E)."""

    @staticmethod
    def forward(
        ctx: Any, packed: Tensor, norm: Tensor | None, rope: Rope, shape: Shape
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = packed.unflatten(-1, (-1, shape.head_size))
        qk, v = heads.split((shape.heads + shape.kv_heads, shape.kv_heads), dim=1)
        scale = None
        x = qk
        if norm is not None:
            scale = _scale(qk, shape.eps)
            x = (qk * scale).to(qk.dtype).mul_(norm)
        rotated = x * rope.cos
        half = shape.head_size // 2
        rotated[..., :half].addcmul_(x[..., half:], rope.sin[..., :half])
        rotated[..., half:].addcmul_(x[..., :half], rope.sin[..., half:])
        ctx.norm, ctx.rope, ctx.shape, ctx.scale = norm, rope, shape, scale
        ctx.save_for_backward(packed)
        q, k = rotated.split((shape.heads, shape.kv_heads), dim=1)
        return q, k, v.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (packed,), shape, sin = ctx.saved_tensors, ctx.shape, ctx.rope.sin
        found = torch.empty_like(packed).unflatten(-1, (-1, shape.head_size))
        parts = found.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        half = shape.head_size // 2
        for part, gradient in zip(parts[:2], gradients[:2], strict=True):
            torch.mul(gradient, ctx.rope.cos, out=part)
            part[..., :half].addcmul_(gradient[..., half:], sin[..., half:])
            part[..., half:].addcmul_(gradient[..., :half], sin[..., :half])
        parts[2].copy_(gradients[2])
        if ctx.scale is not None:
            qk = slice(0, shape.heads + shape.kv_heads)
            _norm_backward(found[:, qk].mul_(ctx.norm), packed.view(found.shape)[:, qk], ctx.scale)
        return found.flatten(1), None, None, None


class _Gate(torch.autograd.Function):
    """silu(gate)·up of packed gate and up, (N, 2·hidden)."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> Tensor:
        gate, up = packed.chunk(2, dim=-1)
        opened = silu(gate)
        ctx.save_for_backward(packed, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        packed, opened = ctx.saved_tensors
        gate, up = packed.chunk(2, dim=-1)
        found = torch.empty_like(packed)
        by_gate, by_up = found.chunk(2, dim=-1)
        torch.mul(gradients[0], opened, out=by_up)
        silu_backward(gradients[0] * up, gate, opened, by_gate)
        return found
