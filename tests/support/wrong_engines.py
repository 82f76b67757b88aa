"""Engines that are wrong in one way each, for a conformance check to find: a real one behind one falsehood."""

import asyncio
from typing import Any

import msgspec


class Wrapped:
    """All that the real engine does."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class HalfGradients(Wrapped):
    """Tells the loss as it is, and trains on half of it."""

    async def forward_backward(self, adapter, rows, loss, forward_only=False):
        told = await self._engine.forward_backward(adapter, rows, loss, True)
        if not forward_only:
            halves = [{"weights": [one / 2 for one in row.inputs["weights"]]} for row in rows]
            halved = [msgspec.structs.replace(row, inputs=half) for row, half in zip(rows, halves, strict=True)]
            await self._engine.forward_backward(adapter, halved, loss)
        return told


class MeanLoss(Wrapped):
    """Divides the loss by the number of datums."""

    async def forward_backward(self, adapter, rows, loss, forward_only=False):
        told = await self._engine.forward_backward(adapter, rows, loss, forward_only)
        metrics = told.metrics | {"loss:sum": told.metrics["loss:sum"] / len(rows)}
        return msgspec.structs.replace(told, metrics=metrics)


class FlatTargets(Wrapped):
    """Of several targets at a position it trains the first."""

    async def forward_backward(self, adapter, rows, loss, forward_only=False):
        flat = [
            msgspec.structs.replace(
                row,
                targets=row.targets[:: row.width],
                inputs={name: values[:: row.width] for name, values in row.inputs.items()},
                width=1,
            )
            for row in rows
        ]
        told = await self._engine.forward_backward(adapter, flat, loss, forward_only)
        again = [
            [one for one in values for _ in range(row.width)] for row, values in zip(rows, told.logprobs, strict=True)
        ]
        return msgspec.structs.replace(told, logprobs=again)


class ShiftedScores(Wrapped):
    """Tells each token's log-probability one place early."""

    async def score(self, *asked):
        told = await self._engine.score(*asked)
        return msgspec.structs.replace(told, logprobs=[*told.logprobs[1:], -1.0])


class NoClipping(Wrapped):
    """Takes grad_clip_norm and does nothing about it."""

    async def optim_step(self, adapter, params):
        return await self._engine.optim_step(adapter, msgspec.structs.replace(params, grad_clip_norm=0.0))


class Seedless(Wrapped):
    """Takes a seed and does nothing about it."""

    def sample(self, adapter, prompt, params, *more, **options):
        return self._engine.sample(adapter, prompt, msgspec.structs.replace(params, seed=None), *more, **options)


class Slow(Wrapped):
    """Takes long for the first optimizer step."""

    seconds = 4.0

    async def optim_step(self, adapter, params):
        seconds, self.seconds = self.seconds, 0.0
        await asyncio.sleep(seconds)
        return await self._engine.optim_step(adapter, params)
