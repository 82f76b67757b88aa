"""silu whose bits do not depend on how torch shares a tensor out among threads.

torch cuts a tensor into as many pieces as it has threads for, and at the end of a piece, where fewer numbers are left
than the processor takes at once, its silu rounds otherwise. One or two threads cut between whole vectors; more may not.
For them there is the same function of operations that round alike everywhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """Return x·σ(x)."""
    return F.silu(x) if _whole(x) else x * _sigmoid(x)


def silu_backward(gradient: Tensor, x: Tensor, opened: Tensor, out: Tensor) -> None:
    """Write the gradient at x from that at ``opened``, silu(x), to ``out``."""
    if _whole(x):
        torch.ops.aten.silu_backward.grad_input(gradient, x, grad_input=out)
    else:
        sigmoid = _sigmoid(x)
        torch.mul(gradient, sigmoid.addcmul(opened, sigmoid, value=-1).add_(opened), out=out)


def _whole(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.get_num_threads() < 3


def _sigmoid(x: Tensor) -> Tensor:
    return x.neg().exp_().add_(1).reciprocal_()
