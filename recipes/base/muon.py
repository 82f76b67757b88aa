"""Muon: momentum, made orthogonal, for matrices (Jordan et al., 2024, "Muon: an optimizer for hidden layers")."""

import torch
from torch import Tensor


def orthogonal(matrix: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """Return about the nearest semi-orthogonal matrix by the quintic Newton–Schulz iteration of the Muon post."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Each step moves a matrix by ``lr`` times its orthogonalised Nesterov momentum, scaled to its shape.

    ``dtype`` is that of the iteration, which bears bfloat16.
    """

    def __init__(self, params, lr: float, dtype: torch.dtype, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "dtype": dtype, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                buffer = state.setdefault("momentum", torch.zeros_like(param))
                buffer.mul_(group["momentum"]).add_(param.grad)
                update = orthogonal(param.grad + group["momentum"] * buffer, group["dtype"])
                param.add_(update, alpha=-group["lr"] * max(1.0, param.size(0) / param.size(1)) ** 0.5)
