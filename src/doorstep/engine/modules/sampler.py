"""Sampling from a ``transformers`` module, with its own cache: the prompt once a request, then 8 samples in step.

A block is 8 rows of one request, however many of them are samples: all products have one shape, so that a sample's
numbers depend neither on other requests nor on how many samples were asked for. Blocks take their turns.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from doorstep.engine.choice import advance
from doorstep.engine.modules.base import Base
from doorstep.engine.modules.changes import Changes
from doorstep.engine.requests import Request, Sample

ROWS = 8


class _Block:
    """Samples of one request that are alive, and the cache of their rows."""

    def __init__(self, changes: Changes, request: Request, live: list[Sample], cache: Any, shift: int) -> None:
        self.changes = changes
        self.request = request
        self.live = live
        self.cache = cache
        self.shift = shift


class ModulesSampler:
    """Everything that is sampled on one base."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._blocks: list[_Block] = []

    @property
    def rows(self) -> int:
        """How many samples are alive."""
        return sum(len(block.live) for block in self._blocks)

    def requests(self) -> list[Request]:
        """Return the requests with samples alive."""
        return list({id(block.request): block.request for block in self._blocks}.values())

    @torch.no_grad()
    def add(self, changes: Changes, request: Request) -> None:
        """Read a request's prompt and choose its first tokens."""
        base = self._base
        tokens, inputs, shift = base.place(request.prompt, request.images)
        hidden, cache = base.read(changes, tokens, **inputs)
        scores = base.logits(changes, hidden[0, -1:])
        live = advance(request.samples, scores.expand(len(request.samples), -1))
        for first in range(0, len(request.samples), ROWS):
            if samples := [sample for sample in live if first <= sample.index < first + ROWS]:
                rows = copy.deepcopy(cache)
                rows.reorder_cache(torch.zeros(ROWS, dtype=torch.long, device=base.device))  # each is the prompt
                self._blocks.append(_Block(changes, request, samples, rows, shift))
        request.send()

    @torch.no_grad()
    def step(self) -> None:
        """Give every sample its next token; let the finished and the cancelled go."""
        self._blocks = [block for block in self._blocks if not block.request.cancelled]
        requests = self.requests()
        for block in self._blocks:
            block.live = advance(block.live, self._scores(block))
        self._blocks = [block for block in self._blocks if block.live]
        for request in requests:
            request.send()

    def _scores(self, block: _Block) -> Tensor:
        """Feed each sample's last token; return the scores of its next, (samples, V)."""
        places = [sample.index % ROWS for sample in block.live]
        tokens = torch.zeros(ROWS, 1, dtype=torch.long)
        tokens[places, 0] = torch.tensor([sample.tokens[-1] for sample in block.live])
        at = len(block.request.prompt) + len(block.live[0].tokens) - 1 + block.shift
        return self._base.step(block.changes, tokens.to(self._base.device), block.cache, at)[places]
