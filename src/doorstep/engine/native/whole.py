"""A model trained in full: one pass of the decoder on parameters of its own, their gradients by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from doorstep.engine.full import Full
from doorstep.engine.native import decoder
from doorstep.engine.native.base import pack
from doorstep.engine.native.decoder import Attend, Rope, Shape


class Whole:
    """One pass, and its own head."""

    def __init__(self, shape: Shape, full: Full, dtype: torch.dtype) -> None:
        self._flat = full.flat.detach().requires_grad_()
        self._weights = pack(full.parameters(self._flat, dtype), shape)
        self._padding = full.padding
        self._by_head = torch.zeros_like(self._weights.head)
        self.vocabulary = shape.vocabulary

    def hidden(self, shape: Shape, rope: Rope, tokens: Tensor, attend: Attend) -> Tensor:
        """Return the decoder's hidden states (N, D)."""
        x = F.embedding(tokens, self._weights.embed, self._padding)
        return decoder.through(shape, self._weights.layers, self._weights.norm, rope, x, attend, F.linear)

    def heads(self) -> list["Whole"]:
        """Return the one head."""
        return [self]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (P, V) of hidden states (P, D)."""
        return decoder.logits(self._weights, hidden)

    def backward(self, change: Tensor, hidden: Tensor) -> Tensor:
        """Return the gradient at hidden states from that at their scores; add that of the head."""
        self._by_head.addmm_(change.T, hidden)
        return torch.mm(change, self._weights.head)

    def gradients(self) -> list[Tensor]:
        """Return the gradient, like ``flat``."""
        if self._weights.head.requires_grad:
            self._weights.head.backward(self._by_head)
        gradient = self._flat.grad
        return [torch.zeros_like(self._flat) if gradient is None else gradient]
