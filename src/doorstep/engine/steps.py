"""The optimiser's step: AdamW exactly as torch has it, on one vector."""

import math

import torch

from doorstep.engine.adapter import Trained
from doorstep.engine.api import AdamParams
from doorstep.errors import EngineError


def optim_step(adapter: Trained, params: AdamParams) -> dict[str, float]:
    """Step AdamW with the gradients so far and clear them; on gradients that are not finite the weights stay."""
    _check(params)
    norm = float(torch.linalg.vector_norm(adapter.gradient))
    if not math.isfinite(norm):
        adapter.gradient.zero_()
        raise EngineError("the gradients are not finite; they were cleared, the weights are as before. Lower the rate.")
    if 0 < params.grad_clip_norm < norm:
        adapter.gradient.mul_(params.grad_clip_norm / norm)
    adapter.optimizer.param_groups[0].update(
        lr=params.learning_rate,
        betas=(params.beta1, params.beta2),
        eps=params.eps,
        weight_decay=params.weight_decay,
    )
    adapter.flat.grad = adapter.gradient
    adapter.optimizer.step()
    adapter.gradient.zero_()
    return {"step": float(adapter.optimizer.state[adapter.flat]["step"]), "grad_norm": norm}


def _check(params: AdamParams) -> None:
    """Refuse what torch does; it looks only when an optimiser is made."""
    for name in ("learning_rate", "eps", "weight_decay", "grad_clip_norm"):
        if not 0 <= getattr(params, name) < math.inf:
            raise EngineError(f"{name} is {getattr(params, name)}; it must be 0 or more and finite")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(params, name) < 1:
            raise EngineError(f"{name} is {getattr(params, name)}; it must be 0 or more and below 1")
