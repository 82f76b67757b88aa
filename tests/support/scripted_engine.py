"""A fake Engine for protocol tests: no model, no torch. It counts, answers by rule, and fails or waits when told to.

Its "weights" are one number per adapter, moved by each optimiser step; the log-probability of every token is minus
that number, and sampling gives the numbers after the prompt's last token. A target's score is its own number.
"""

import asyncio
import hashlib
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from doorstep.engine.api import (
    AdamParams,
    Checkpoint,
    Finished,
    Image,
    LoraSpec,
    Loss,
    ModelInfo,
    SampleParams,
    ScoreParams,
    Scores,
    Token,
    TrainResult,
    TrainRow,
)
from doorstep.errors import EngineError


class _Adapter(msgspec.Struct):
    spec: LoraSpec
    weight: float = 1.0
    gradient: float = 0.0
    steps: int = 0


class ScriptedEngine:
    """``calls`` is what was asked of it, in order; clear ``gate`` to make operations wait."""

    def __init__(self, folder: str, name: str = "tiny") -> None:
        self.calls: list[tuple[str, str | None]] = []
        self.batches: list[tuple[list[TrainRow], Loss]] = []  # what it was trained on
        self.adapters: dict[str, _Adapter] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.sampling_closed = 0
        self.on_loss: list[Callable[[], None]] = []
        self._info = ModelInfo(
            name=name,
            folder=folder,
            digest="d" * 64,
            tokenizer_digest="t" * 64,
            parameters=1,
            vocabulary=1000,
            max_context=64,
        )

    async def info(self) -> ModelInfo:
        return self._info

    async def create_adapter(self, adapter: str, spec: LoraSpec) -> None:
        self.calls.append(("create", adapter))
        if spec.rank > 512:
            raise EngineError("rank is at most 512")
        self.adapters[adapter] = _Adapter(spec)

    async def copy_adapter(self, source: str, target: str) -> None:
        self.calls.append(("copy", source))
        held = self._get(source)
        self.adapters[target] = _Adapter(held.spec, held.weight)

    async def adapter_size(self, adapter: str) -> int:
        self._get(adapter)
        return 1

    async def drop_adapter(self, adapter: str) -> None:
        self.calls.append(("drop", adapter))
        self._get(adapter)
        del self.adapters[adapter]

    async def forward_backward(
        self, adapter: str, rows: list[TrainRow], loss: Loss, forward_only: bool = False
    ) -> TrainResult:
        self.calls.append((f"forward_backward {loss.name} {loss.config} {rows[0].tokens}", adapter))
        self.batches.append((rows, loss))
        await self.gate.wait()
        held = self._get(adapter)
        if any(token >= self._info.vocabulary for row in rows for token in row.tokens):
            raise EngineError("row 0: a token id is not in the vocabulary")
        weights = [w for row in rows for w in (row.inputs.get("weights") or row.inputs.get("advantages") or [])]
        if not forward_only:
            held.gradient += sum(weights)
        logprobs = [[-held.weight] * len(row.targets) for row in rows]
        return TrainResult(logprobs=logprobs, metrics={"loss:sum": held.weight * sum(weights)})

    async def optim_step(self, adapter: str, params: AdamParams) -> dict[str, float]:
        self.calls.append(("optim_step", adapter))
        held = self._get(adapter)
        held.weight -= params.learning_rate * held.gradient
        held.gradient, held.steps = 0.0, held.steps + 1
        return {"step": float(held.steps)}

    async def save(self, adapter: str, folder: str, optimizer: bool) -> Checkpoint:
        self.calls.append(("save", adapter))
        held = self._get(adapter)
        data = msgspec.json.encode(held if optimizer else _Adapter(held.spec, held.weight))
        Path(folder).mkdir()  # noqa: ASYNC240
        (Path(folder) / "adapter.json").write_bytes(data)
        return Checkpoint(digest=hashlib.sha256(data).hexdigest(), size=len(data))

    async def load(self, adapter: str, folder: str, optimizer: bool) -> LoraSpec:
        self.calls.append(("load", adapter))
        try:
            held = msgspec.convert(json.loads((Path(folder) / "adapter.json").read_text()), _Adapter)
        except OSError as error:
            raise EngineError(f"{folder} holds no adapter that can be read: {error}") from None
        self.adapters[adapter] = held if optimizer else _Adapter(held.spec, held.weight)
        return held.spec

    async def sample(
        self, adapter: str | None, prompt: list[int], params: SampleParams, n: int = 1, images: Sequence[Image] = ()
    ) -> AsyncIterator[Token | Finished]:
        self.calls.append(("sample", adapter))
        logprob = -(self._get(adapter).weight if adapter else 1.0)
        top = [(choice, logprob) for choice in range(params.top_logprobs)]
        try:
            for step in range(params.max_tokens):
                await self.gate.wait()
                for index in range(n):
                    yield Token(index, prompt[-1] + step + 1, logprob, top)
                if params.stop is not None and [prompt[-1] + step + 1] in params.stop:
                    break
            for index in range(n):
                yield Finished(index, "length" if step + 1 == params.max_tokens else "stop")
        finally:
            self.sampling_closed += 1

    async def score(
        self,
        adapter: str | None,
        tokens: list[int],
        params: ScoreParams = ScoreParams(),  # noqa: B008
        images: Sequence[Image] = (),
    ) -> Scores:
        logprob = -(self._get(adapter).weight if adapter else 1.0)
        places = len(tokens) - 1
        return Scores(
            logprobs=[None, *[logprob] * places],
            top=[[(choice, logprob) for choice in range(params.top)]] * places,
            targets=[float(target) if target >= 0 else math.nan for target in params.targets],
            alternatives=[[(choice + 10, logprob) for choice in range(params.alternatives)]] * places,
        )

    async def measure(self, images: Sequence[bytes]) -> list[int]:
        raise EngineError("this model takes no images")

    async def close(self) -> None:
        pass

    def _get(self, adapter: str) -> _Adapter:
        if adapter not in self.adapters:
            raise EngineError(f"there is no adapter {adapter}")
        return self.adapters[adapter]
